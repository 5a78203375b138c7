// Deno: deno run --allow-net --allow-read --allow-env deno.ts
import { createMcpHandler } from '@modelcontextprotocol/server';
import { getAuthInfo, withAuthFetch } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

declare const Deno: { serve(options: object, handler: (request: Request) => Promise<Response>): void }; // Deno knows it

const mcp = createMcpHandler(createMcpServer);
const fetch = withAuthFetch((request) => mcp.fetch(request, { authInfo: getAuthInfo() }), {
  cors: { origin: ['https://app.example'] },
});
Deno.serve({ hostname: '127.0.0.1', port: 3000 }, fetch);
