// node:http with MCP SDK v1, a server for each request and no sessions; answers are event streams.
import { createServer } from 'node:http';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { withAuth } from 'mcp-auth-middleware';
import { createMcpServer } from './tools-sdk1.ts';

createServer(
  withAuth(
    async (req, res) => {
      const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined });
      res.on('close', () => void transport.close());
      await createMcpServer().connect(transport);
      await transport.handleRequest(req, res);
    },
    { cors: { origin: ['https://app.example'] } },
  ),
).listen(3000, '127.0.0.1');
