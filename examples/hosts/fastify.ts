// Fastify 5: an onRequest hook with `done`. An async hook would lose the user before the route runs.
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler } from '@modelcontextprotocol/server';
import fastify from 'fastify';
import { authMiddleware } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const auth = authMiddleware({ cors: { origin: ['https://app.example'] } });
const mcp = toNodeHandler(createMcpHandler(createMcpServer));

const app = fastify();
app.addHook('onRequest', (request, reply, done) => auth(request.raw, reply.raw, done));
app.all('/mcp', (request, reply) => {
  reply.hijack();
  return mcp(request.raw, reply.raw, request.body);
});
await app.listen({ port: 3000, host: '127.0.0.1' });
