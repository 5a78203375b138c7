// MCP over a WebSocket. Its handshake is an upgrade, which reaches no request handler and so no middleware: ask the
// same verifier. The token comes in the header, never in the query string, which ends up in logs.
import { createServer } from 'node:http';
import type { Transport } from '@modelcontextprotocol/server';
import { type Auth, AuthError, bearerToken, getAuthInfo, JWETokenVerifier, runAs, withAuth } from 'mcp-auth-middleware';
import { type WebSocket, WebSocketServer } from 'ws';
import { createMcpServer } from './tools.ts';

async function connect(ws: WebSocket, auth: Auth): Promise<void> {
  const transport: Transport = {
    start: async () => {},
    send: async (message) => ws.send(JSON.stringify(message)),
    close: async () => ws.close(),
  };
  ws.on('error', (error) => transport.onerror?.(error));
  ws.on('close', () => transport.onclose?.());
  ws.on('message', (data) => {
    try {
      const message = JSON.parse(String(data));
      runAs(auth, () => transport.onmessage?.(message, { authInfo: getAuthInfo() }));
    } catch {
      ws.close(1007); // not JSON
    }
  });
  await createMcpServer().connect(transport);
}

const verifier = new JWETokenVerifier();
const sockets = new WebSocketServer({ noServer: true });
const options = { verifier, cors: { origin: ['https://app.example'] } };
const server = createServer(withAuth((_req, res) => res.writeHead(426).end(), options)); // the public key alone

server.on('upgrade', async (req, socket, head) => {
  socket.on('error', () => socket.destroy()); // the client may leave at any moment
  try {
    const auth = await verifier.authenticate(bearerToken(req));
    sockets.handleUpgrade(req, socket, head, (ws) => connect(ws, auth));
  } catch (error) {
    const status = error instanceof AuthError ? error.status : 500;
    socket.end(`HTTP/1.1 ${status} Refused\r\nWWW-Authenticate: Bearer\r\nConnection: close\r\n\r\n`);
  }
});
server.listen(3000, '127.0.0.1');
