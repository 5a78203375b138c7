// MCP over a WebSocket. Its handshake is an upgrade, which reaches no request handler and so no middleware: the same verifier
// is asked by hand. The token comes in the header, never in the query string, which ends up in logs.
import { createServer } from 'node:http';
import type { Transport } from '@modelcontextprotocol/server';
import { AuthError, bearerToken, getAuthInfo, JWETokenVerifier, runAs, withAuth } from 'mcp-auth-middleware';
import { WebSocketServer } from 'ws';
import { createMcpServer } from './tools.ts';

const verifier = new JWETokenVerifier();
const sockets = new WebSocketServer({ noServer: true });
const server = createServer(
  withAuth((_req, res) => void res.writeHead(404).end(), { verifier, cors: { origin: ['https://app.example'] } }),
);

server.on('upgrade', async (req, socket, head) => {
  socket.on('error', () => socket.destroy()); // the client may leave at any moment
  try {
    const auth = await verifier.authenticate(bearerToken(req));
    sockets.handleUpgrade(req, socket, head, async (ws) => {
      const transport: Transport = {
        start: async () => {},
        send: async (message) => ws.send(JSON.stringify(message)),
        close: async () => ws.close(),
      };
      ws.on('message', (data) =>
        runAs(auth, () => transport.onmessage?.(JSON.parse(String(data)), { authInfo: getAuthInfo() })),
      );
      ws.on('close', () => transport.onclose?.());
      await createMcpServer().connect(transport);
    });
  } catch (error) {
    const status = error instanceof AuthError ? error.status : 500;
    socket.end(`HTTP/1.1 ${status} \r\nWWW-Authenticate: Bearer\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
  }
});
server.listen(3000, '127.0.0.1');
