// Fastify 5 with the middleware as a plugin. Without fastify-plugin its hook would be of an inner scope, where neither
// the routes beside it nor the public key are.
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler } from '@modelcontextprotocol/server';
import fastify from 'fastify';
import plugin from 'fastify-plugin';
import { authMiddleware, type AuthOptions } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const auth = plugin<AuthOptions>((app, options, done) => {
  const middleware = authMiddleware(options);
  app.addHook('onRequest', (request, reply, next) => middleware(request.raw, reply.raw, next));
  done();
});

const mcp = toNodeHandler(createMcpHandler(createMcpServer));
const app = fastify();
app.register(auth, { cors: { origin: ['https://app.example'] } });
app.all('/mcp', (request, reply) => {
  reply.hijack();
  return mcp(request.raw, reply.raw, request.body);
});
await app.listen({ port: 3000, host: '127.0.0.1' });
