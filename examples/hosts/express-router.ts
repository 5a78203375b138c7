// Express with the middleware in a router under a path. Paths in its options are those of the whole URL, and only what
// is below the router reaches it: the public key moves there.
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler } from '@modelcontextprotocol/server';
import express, { Router } from 'express';
import { authMiddleware } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const router = Router();
router.use(authMiddleware({ jwksPath: '/api/jwks.json', cors: { origin: ['https://app.example'] } }));
router.all('/mcp', toNodeHandler(createMcpHandler(createMcpServer)));

const app = express();
app.use('/api', router);
app.listen(3000, '127.0.0.1');
