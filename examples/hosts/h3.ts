// h3 on srvx, as Nitro and Nuxt have it: the whole application behind the middleware.
import { createMcpHandler } from '@modelcontextprotocol/server';
import { H3 } from 'h3';
import { getAuthInfo, withAuthFetch } from 'mcp-auth-middleware';
import { serve } from 'srvx';
import { createMcpServer } from './tools.ts';

const mcp = createMcpHandler(createMcpServer);
const app = new H3().all('/mcp', (event) => mcp.fetch(event.req, { authInfo: getAuthInfo() }));

const fetch = withAuthFetch((request) => app.fetch(request), { cors: { origin: ['https://app.example'] } });
serve({ fetch, port: 3000, hostname: '127.0.0.1' });
