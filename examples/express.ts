// The same in an Express application: the middleware before the routes that need a user.
//
//   MCP_KEY_FILE_PATH=.keys/mcp-private.json node express.ts
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler, McpServer } from '@modelcontextprotocol/server';
import express from 'express';
import { authMiddleware, getUser } from 'mcp-auth-middleware';

const mcp = toNodeHandler(
  createMcpHandler(() => {
    const server = new McpServer({ name: 'hello', version: '1.0.0' });
    server.registerTool('whoami', { description: 'Says who is asking' }, () => ({
      content: [{ type: 'text', text: `Hello, ${getUser<{ email: string }>().email}!` }],
    }));
    return server;
  }),
);

const app = express();
app.get('/healthz', (_req, res) => void res.sendStatus(200)); // before the middleware: no token needed
app.use(authMiddleware({ requiredClaims: ['email'] })); // at the root, where it also answers /.well-known/jwks.json
app.use(express.json()); // after it: nobody without a token makes the server parse anything
app.get('/me', (_req, res) => void res.json(getUser()));
app.all('/mcp', (req, res) => mcp(req, res, req.body));

const host = process.env.HOST ?? '127.0.0.1';
const server = app.listen(Number(process.env.PORT ?? 3000), host, (error) => {
  if (error) throw error;
  const address = server.address();
  const port = typeof address === 'object' ? address?.port : undefined;
  console.log(`MCP server at http://${host}:${port}/mcp`);
});
