// node:http2, with HTTP/1.1 for those who ask for it.
import { readFileSync } from 'node:fs';
import { createSecureServer } from 'node:http2';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler } from '@modelcontextprotocol/server';
import { withAuth } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const tls = { allowHTTP1: true, cert: readFileSync('tls.crt'), key: readFileSync('tls.key') };
const mcp = toNodeHandler(createMcpHandler(createMcpServer));
createSecureServer(tls, withAuth(mcp, { cors: { origin: ['https://app.example'] } })).listen(3000, '127.0.0.1');
