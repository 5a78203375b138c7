// Express where one path is guarded and the rest is not. `/.well-known` belongs to it: the public key is served there.
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler } from '@modelcontextprotocol/server';
import express from 'express';
import { authMiddleware } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const app = express();
app.use(['/mcp', '/.well-known'], authMiddleware({ cors: { origin: ['https://app.example'] } }));
app.all('/mcp', toNodeHandler(createMcpHandler(createMcpServer)));
app.get('/', (_req, res) => void res.send('A page for everybody'));
app.listen(3000, '127.0.0.1');
