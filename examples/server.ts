// An MCP server that knows who is asking: node:http, the official MCP SDK and one line of middleware.
//
//   npx mcp-auth-middleware generate
//   MCP_KEY_FILE_PATH=.keys/mcp-private.json node server.ts     # Node 22.18 or later; compile it for Node 20
import { createServer } from 'node:http';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler, McpServer } from '@modelcontextprotocol/server';
import { getUser, withAuth } from 'mcp-auth-middleware';
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

// withAuth reads the key file once at start and stops here when there is no usable key. It answers
// /.well-known/jwks.json itself; nothing but /healthz reaches the handler without a valid token.
const server = createServer(
  withAuth(
    (req, res) => {
      const path = req.url?.split('?')[0];
      if (path === '/mcp') return mcp(req, res);
      res.writeHead(path === '/healthz' ? 200 : 404).end();
    },
    { publicPaths: ['/healthz'] },
  ),
);

const host = process.env.HOST ?? '127.0.0.1';
server.listen(Number(process.env.PORT ?? 3000), host, () => {
  const address = server.address();
  const port = typeof address === 'object' ? address?.port : undefined;
  console.log(`MCP server at http://${host}:${port}/mcp`);
});

// Kubernetes sends SIGTERM: requests under way are finished, streams still open after ten seconds are cut.
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    server.close();
    setTimeout(() => server.closeAllConnections(), 10_000).unref();
  });
}
