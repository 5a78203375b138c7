// A WebSocket without MCP: Node hands its handshake to a listener of its own, past every middleware, so ask the
// verifier.
import { createServer } from 'node:http';
import { AuthError, bearerToken, getUser, JWETokenVerifier, runAs, withAuth } from 'mcp-auth-middleware';
import { WebSocketServer } from 'ws';

const verifier = new JWETokenVerifier();
const sockets = new WebSocketServer({ noServer: true });
const server = createServer(withAuth((_req, res) => res.end(`Hello, ${getUser().name}!`), { verifier }));

server.on('upgrade', async (req, socket, head) => {
  socket.on('error', () => socket.destroy()); // the client may leave at any moment
  try {
    const auth = await verifier.authenticate(bearerToken(req));
    sockets.handleUpgrade(req, socket, head, (ws) => runAs(auth, () => ws.send(`Hello, ${getUser().name}!`)));
  } catch (error) {
    const status = error instanceof AuthError ? error.status : 500;
    socket.end(`HTTP/1.1 ${status} Refused\r\nWWW-Authenticate: Bearer\r\nConnection: close\r\n\r\n`);
  }
});
server.listen(Number(process.env.PORT ?? 3000), '127.0.0.1', () => {
  const address = server.address();
  if (address !== null && typeof address === 'object') console.log(`Listening on http://127.0.0.1:${address.port}/`);
});
