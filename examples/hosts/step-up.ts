// A scope for one tool. Who calls `write` without it gets 403 and a challenge that names the scope; the official
// client then asks its authorization server for a token with that scope and tries again. Scopes need the level "signed
// and encrypted": on the other one everybody can claim them.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler, McpServer, requireScopes } from '@modelcontextprotocol/server';
import { getUser, withAuth } from 'mcp-auth-middleware';

const issuer = 'https://idp.example';
const jwks = JSON.parse(readFileSync('.keys/signing-public.json', 'utf8'));

function createMcpServer(): McpServer {
  const server = new McpServer({ name: 'notes', version: '1.0.0' });
  server.registerTool('read', { description: 'Reads the notes' }, () => ({
    content: [{ type: 'text', text: `notes of ${getUser().sub}` }],
  }));
  const write = { description: 'Writes a note', scopeChallenge: requireScopes('notes:write') };
  server.registerTool('write', write, () => ({ content: [{ type: 'text', text: `written by ${getUser().sub}` }] }));
  return server;
}

const mcp = toNodeHandler(createMcpHandler(createMcpServer));
createServer(
  withAuth(mcp, {
    resource: 'https://mcp.example/mcp', // the challenge and RFC 9728 metadata lead clients from here to the issuer
    authorizationServers: [issuer],
    trustedIssuers: [{ issuer, jwks }],
  }),
).listen(3000, '127.0.0.1');
