// What a strict project writes against the library with the frameworks and the SDKs of the field.
import { WebStandardStreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js';
import { createMcpHandler, McpServer } from '@modelcontextprotocol/server';
import express from 'express';
import { fastify } from 'fastify';
import { authMiddleware, getAuthInfo, getUser, withAuthFetch } from 'mcp-auth-middleware';

const auth = authMiddleware();

express()
  .use(auth)
  .get('/me', (_req, res) => void res.json(getUser()));

const app = fastify();
app.addHook('onRequest', (request, reply, done) => auth(request.raw, reply.raw, (error) => done(error as Error)));

const v1 = new WebStandardStreamableHTTPServerTransport();
export const fetchV1: (request: Request) => Promise<Response> = withAuthFetch((request) => {
  const authInfo = getAuthInfo();
  return v1.handleRequest(request, authInfo ? { authInfo } : {});
});

const v2 = createMcpHandler(() => new McpServer({ name: 'consumer', version: '1.0.0' }));
export const fetchV2: (request: Request) => Promise<Response> = withAuthFetch((request) => {
  const authInfo = getAuthInfo();
  return v2.fetch(request, authInfo ? { authInfo } : {});
});
