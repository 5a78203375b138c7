// node:http with MCP SDK v1 and sessions: each stays with the user who opened it, the others get 404.
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { withAuth } from 'mcp-auth-middleware';
import { createMcpServer } from './tools-sdk1.ts';

const sessions = new Map<string, StreamableHTTPServerTransport>();

async function openSession(): Promise<StreamableHTTPServerTransport> {
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    onsessioninitialized: (id) => void sessions.set(id, transport),
    onsessionclosed: (id) => void sessions.delete(id),
  });
  await createMcpServer().connect(transport);
  return transport;
}

createServer(
  withAuth(
    async (req, res) => {
      const id = req.headers['mcp-session-id'];
      const transport = id === undefined ? await openSession() : sessions.get(String(id));
      if (transport) await transport.handleRequest(req, res);
      else res.writeHead(404).end(); // the client opens a new session
    },
    { cors: { origin: ['https://app.example'] } },
  ),
).listen(3000, '127.0.0.1');
