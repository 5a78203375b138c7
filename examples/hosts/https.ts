// node:https; the certificate and its key are files of yours.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler } from '@modelcontextprotocol/server';
import { withAuth } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const tls = { cert: readFileSync('tls.crt'), key: readFileSync('tls.key') };
const mcp = toNodeHandler(createMcpHandler(createMcpServer));
createServer(tls, withAuth(mcp, { cors: { origin: ['https://app.example'] } })).listen(3000, '127.0.0.1');
