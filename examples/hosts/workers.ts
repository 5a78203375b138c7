// Cloudflare Workers with `nodejs_compat`. There is no file system for keys and no time between requests: give the
// private set as a secret (`wrangler secret put MCP_KEYS < .keys/mcp-private.json`).
import { createMcpHandler } from '@modelcontextprotocol/server';
import { getAuthInfo, withAuthFetch } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

type Handler = (request: Request) => Promise<Response>;
const mcp = createMcpHandler(createMcpServer);
let guarded: Handler | undefined;

export default {
  fetch(request: Request, env: { MCP_KEYS: string }): Promise<Response> {
    guarded ??= withAuthFetch((guardedRequest) => mcp.fetch(guardedRequest, { authInfo: getAuthInfo() }), {
      keys: JSON.parse(env.MCP_KEYS),
      cors: { origin: ['https://app.example'] },
    });
    return guarded(request);
  },
};
