// The MCP server that the hosts of this folder serve: yours. SDK v2.
import { McpServer } from '@modelcontextprotocol/server';
import { getUser } from 'mcp-auth-middleware';

export function registerTools(server: McpServer): void {
  server.registerTool('whoami', { description: 'Says who is asking' }, async ({ http }) => {
    await new Promise((resolve) => setTimeout(resolve, 10)); // as a database takes: others ask meanwhile
    return { content: [{ type: 'text', text: `${getUser().sub} through ${http?.authInfo?.clientId}` }] };
  });
}

export function createMcpServer(): McpServer {
  const server = new McpServer({ name: 'hosts', version: '1.0.0' });
  registerTools(server);
  return server;
}
