// Koa 3: the raw pair in a promise that goes on with the next middleware.
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler } from '@modelcontextprotocol/server';
import Koa from 'koa';
import { authMiddleware } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const auth = authMiddleware({ cors: { origin: ['https://app.example'] } });
const mcp = toNodeHandler(createMcpHandler(createMcpServer));

const app = new Koa();
app.use(
  ({ req, res }, next) =>
    new Promise<void>((resolve, reject) => auth(req, res, (error) => (error ? reject(error) : resolve(next())))),
);
app.use(async (context) => {
  context.respond = false; // the handler answers by itself
  await mcp(context.req, context.res);
});
app.listen(3000, '127.0.0.1');
