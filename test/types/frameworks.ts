// What a strict project writes against the library with the frameworks and SDKs of the field, without a cast.
import { createServer } from 'node:http';
import { createServer as createHttp2 } from 'node:http2';
import * as sdk from '@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js';
import { createMcpHandler, McpServer } from '@modelcontextprotocol/server';
import express from 'express';
import { fastify } from 'fastify';
import { FastMCP } from 'fastmcp';
import Koa from 'koa';
import {
  authMiddleware,
  type Auth,
  type AuthenticatedRequest,
  getAuth,
  getAuthInfo,
  getUser,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';

const auth = authMiddleware();

express()
  .use(auth)
  .use(['/mcp', '/.well-known'], authMiddleware({ requiredClaims: ['name'] }))
  .get('/me', (req: express.Request & AuthenticatedRequest, res) => {
    res.json({ user: getUser(req), clientId: req.auth?.clientId });
  });

createServer(withAuth(express()));
createServer(withAuth(new Koa().callback()));
createHttp2(withAuth(new Koa().callback()));

fastify().addHook('onRequest', (request, reply, done) => auth(request.raw, reply.raw, done));

// The session of fastmcp is whatever its authenticate returns.
const fastmcp = new FastMCP<Auth>({
  name: 'consumer',
  version: '1.0.0',
  authenticate: async (request) => {
    const session = getAuth(request);
    if (session === undefined) throw new Response(null, { status: 401 });
    return session;
  },
});
fastmcp.addTool({
  name: 'whoami',
  description: 'Says who is asking',
  execute: async (_, { session }) => String(session?.user.sub),
});

const v1 = new sdk.WebStandardStreamableHTTPServerTransport();
export const fetchV1: (request: Request) => Promise<Response> = withAuthFetch((request) =>
  v1.handleRequest(request, { authInfo: getAuthInfo() }),
);

const v2 = createMcpHandler(() => new McpServer({ name: 'consumer', version: '1.0.0' }));
export const fetchV2: (request: Request) => Promise<Response> = withAuthFetch((request) =>
  v2.fetch(request, { authInfo: getAuthInfo() }),
);
