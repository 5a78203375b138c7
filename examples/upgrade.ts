// A WebSocket handshake is an HTTP upgrade, which reaches no request handler and so no middleware: authenticate it by
// hand with the same verifier. The token comes in the Authorization header, never in the query string, which ends up in logs.
//
//   MCP_KEY_FILE_PATH=.keys/mcp-private.json node upgrade.ts
import { createHash } from 'node:crypto';
import { createServer, STATUS_CODES } from 'node:http';
import { AuthError, JWETokenVerifier, withAuth } from 'mcp-auth-middleware';

const verifier = new JWETokenVerifier();
const server = createServer(withAuth((_req, res) => void res.writeHead(404).end(), { verifier }));

server.on('upgrade', async (req, socket) => {
  socket.on('error', () => socket.destroy()); // the client may leave at any moment
  try {
    const token = /^Bearer ([^ ]+)$/i.exec(req.headers.authorization ?? '')?.[1] ?? '';
    const { user } = await verifier.authenticate(token);
    // From here on `ws` or another WebSocket library would take over with handleUpgrade; one text frame needs none.
    const accept = createHash('sha1')
      .update(`${req.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
      .digest('base64');
    const greeting = Buffer.from(`Hello, ${user.name}!`).subarray(0, 125); // RFC 6455 §5.2: a length of up to 125 fits one octet
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
    );
    socket.write(Buffer.concat([Buffer.from([0x81, greeting.length]), greeting]));
    socket.end(Buffer.from([0x88, 0])); // a close frame
  } catch (error) {
    const status = error instanceof AuthError ? error.status : 500;
    const challenge = status === 401 ? 'WWW-Authenticate: Bearer error="invalid_token"\r\n' : '';
    socket.end(
      `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${challenge}Content-Length: 0\r\nConnection: close\r\n\r\n`,
    );
  }
});

const host = process.env.HOST ?? '127.0.0.1';
server.listen(Number(process.env.PORT ?? 3000), host, () => {
  const address = server.address();
  const port = typeof address === 'object' ? address?.port : undefined;
  console.log(`WebSocket server at ws://${host}:${port}/`);
});
