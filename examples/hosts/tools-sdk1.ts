// The same for SDK v1.
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { getUser } from 'mcp-auth-middleware';

export function createMcpServer(): McpServer {
  const server = new McpServer({ name: 'hosts', version: '1.0.0' });
  server.registerTool('whoami', { description: 'Says who is asking' }, async ({ authInfo }) => {
    await new Promise((resolve) => setTimeout(resolve, 10));
    return { content: [{ type: 'text', text: `${getUser().sub} through ${authInfo?.clientId}` }] };
  });
  return server;
}
