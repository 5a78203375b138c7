// node:http with MCP SDK v2: one handler for the protocol of 2025 and that of 2026.
import { createServer } from 'node:http';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler } from '@modelcontextprotocol/server';
import { withAuth } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const mcp = toNodeHandler(createMcpHandler(createMcpServer));
createServer(withAuth(mcp, { cors: { origin: ['https://app.example'] } })).listen(3000, '127.0.0.1');
