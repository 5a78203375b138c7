// Bun: bun bun.ts
import { createMcpHandler } from '@modelcontextprotocol/server';
import { getAuthInfo, withAuthFetch } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

declare const Bun: { serve(options: object): { url: URL } }; // not needed beside @types/bun

const mcp = createMcpHandler(createMcpServer);
const fetch = withAuthFetch((request) => mcp.fetch(request, { authInfo: getAuthInfo() }), {
  cors: { origin: ['https://app.example'] },
});
const { url } = Bun.serve({ fetch, hostname: '127.0.0.1' }); // at the port in PORT, or 3000
console.log(`MCP server at ${url}`);
