// AWS Lambda behind API Gateway or a function URL. The keys come with the function's package or from a layer:
// MCP_KEY_FILE_PATH.
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler } from '@modelcontextprotocol/server';
import { withAuth } from 'mcp-auth-middleware';
import serverless from 'serverless-http';
import { createMcpServer } from './tools.ts';

const mcp = toNodeHandler(createMcpHandler(createMcpServer));
export const handler: serverless.Handler = serverless(withAuth(mcp, { cors: { origin: ['https://app.example'] } }));
