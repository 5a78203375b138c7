// Hono on Node: the whole application behind the middleware.
import { serve } from '@hono/node-server';
import { createMcpHandler } from '@modelcontextprotocol/server';
import { Hono } from 'hono';
import { getAuthInfo, withAuthFetch } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const mcp = createMcpHandler(createMcpServer);
const app = new Hono();
app.all('/mcp', (c) => mcp.fetch(c.req.raw, { authInfo: getAuthInfo() }));

const fetch = withAuthFetch((request) => app.fetch(request), { cors: { origin: ['https://app.example'] } });
serve({ fetch, port: 3000, hostname: '127.0.0.1' });
