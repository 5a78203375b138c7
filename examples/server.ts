// An MCP server that knows who is asking: node:http, the official MCP SDK and one line of middleware.
//
//   npx --no mcp-auth-middleware generate
//   MCP_KEY_FILE_PATH=.keys/mcp-private.json node server.ts     # Node 22.18 or later; compile it for Node 20
//
// PAGE=browser.html serves that page at /. CORS_ORIGIN=https://app.example lets pages of that origin call the tools.
import { readFileSync } from 'node:fs';
import { createServer, type RequestListener } from 'node:http';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler, McpServer } from '@modelcontextprotocol/server';
import { getUser, JWETokenVerifier, withAuth } from 'mcp-auth-middleware';
import { z } from 'zod';

function createMcpServer(): McpServer {
  const mcp = new McpServer({ name: 'hello', version: '1.0.0' });
  mcp.registerTool('whoami', { description: 'Says who is asking' }, () => {
    const user = getUser<{ name?: string }>();
    return { content: [{ type: 'text', text: `Hello, ${user.name ?? 'stranger'}!` }] };
  });
  mcp.registerTool(
    'greet',
    { description: 'Greets whoever is asking', inputSchema: z.object({ greeting: z.string() }) },
    ({ greeting }) => {
      const user = getUser<{ name?: string }>();
      return { content: [{ type: 'text', text: `${greeting}, ${user.name ?? 'stranger'}!` }] };
    },
  );
  return mcp;
}

const mcp = toNodeHandler(createMcpHandler(createMcpServer));
const verifier = new JWETokenVerifier(); // reads the key file once and stops here when there is no usable key
let draining = false;

// What anyone may read without a token. Kubernetes restarts a pod by /healthz and sends it requests by /readyz.
const open = new Map<string, RequestListener>([
  ['/healthz', (_req, res) => void res.end()],
  ['/readyz', (_req, res) => void res.writeHead(!draining && verifier.isReady() ? 200 : 503).end()],
]);
const { PAGE, CORS_ORIGIN, HOST = '127.0.0.1', PORT = '3000' } = process.env;
if (PAGE) {
  const html = readFileSync(PAGE);
  open.set('/', (_req, res) => void res.setHeader('Content-Type', 'text/html').end(html));
}

// withAuth answers /.well-known/jwks.json itself. Without a valid token nothing reaches the handler but the open paths.
const server = createServer(
  withAuth(
    (req, res) => {
      const path = req.url?.split('?')[0] ?? '';
      if (path === '/mcp') return mcp(req, res);
      const listener = open.get(path);
      return listener ? listener(req, res) : void res.writeHead(404).end();
    },
    { verifier, publicPaths: [...open.keys()], cors: CORS_ORIGIN ? { origin: [CORS_ORIGIN] } : false },
  ),
);

server.listen(Number(PORT), HOST, () => {
  const address = server.address();
  const port = typeof address === 'object' ? address?.port : undefined;
  console.log(`MCP server at http://${HOST}:${port}/mcp`);
});

function close(): void {
  server.close(); // requests under way are finished
  setTimeout(() => server.closeAllConnections(), 10_000).unref(); // and streams still open by then are cut
}
process.once('SIGINT', close);
// Kubernetes sends SIGTERM while requests still arrive: first /readyz says so, five seconds later the server closes.
process.once('SIGTERM', () => {
  draining = true;
  setTimeout(close, 5_000);
});
