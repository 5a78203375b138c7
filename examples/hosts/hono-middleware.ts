// Hono with the middleware as one of its own. `c.res =` matters: Hono drops what a middleware returns once a route has
// answered, and with it the headers that let a page read the answer.
import { serve } from '@hono/node-server';
import { createMcpHandler } from '@modelcontextprotocol/server';
import { type Context, Hono, type Next } from 'hono';
import { getAuthInfo, withAuthFetch } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const auth = withAuthFetch(
  async (_request, c: Context, next: Next) => {
    await next();
    return c.res;
  },
  { cors: { origin: ['https://app.example'] } },
);

const mcp = createMcpHandler(createMcpServer);
const app = new Hono();
app.use(async (c, next) => {
  c.res = await auth(c.req.raw, c, next);
});
app.all('/mcp', (c) => mcp.fetch(c.req.raw, { authInfo: getAuthInfo() }));
serve({ fetch: app.fetch, port: 3000, hostname: '127.0.0.1' });
