// Express 5 or 4: the middleware at the root, before anything that parses bodies.
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler } from '@modelcontextprotocol/server';
import express from 'express';
import { authMiddleware, getUser } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const mcp = toNodeHandler(createMcpHandler(createMcpServer));
const app = express();
app.get('/healthz', (_req, res) => void res.sendStatus(200)); // before the middleware: no token needed
app.use(authMiddleware({ requiredClaims: ['sub'], cors: { origin: ['https://app.example'] } }));
app.use(express.json());
app.get('/me', (_req, res) => void res.json(getUser()));
app.all('/mcp', (req, res) => mcp(req, res, req.body));
app.listen(3000, '127.0.0.1');
