// A module with `fetch`, as `deno serve`, `bun`, `npx srvx` and others run it. Here its routes are Hono's.
import { createMcpHandler } from '@modelcontextprotocol/server';
import { Hono } from 'hono';
import { getAuthInfo, withAuthFetch } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const mcp = createMcpHandler(createMcpServer);
const app = new Hono();
app.all('/mcp', (c) => mcp.fetch(c.req.raw, { authInfo: getAuthInfo() }));

export default {
  fetch: withAuthFetch((request) => app.fetch(request), { cors: { origin: ['https://app.example'] } }),
};
