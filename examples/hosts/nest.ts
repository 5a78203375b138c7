// Nest 11 on Express: the middleware before the application's own, so that it sees every path. Compile with
// `experimentalDecorators`, as Nest's projects do.
import 'reflect-metadata';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler } from '@modelcontextprotocol/server';
import { All, Controller, Module, Req, Res } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { authMiddleware } from 'mcp-auth-middleware';
import { createMcpServer } from './tools.ts';

const mcp = toNodeHandler(createMcpHandler(createMcpServer));

@Controller('mcp')
class McpController {
  @All()
  handle(@Req() req: IncomingMessage & { body?: unknown }, @Res() res: ServerResponse): Promise<void> {
    return mcp(req, res, req.body);
  }
}

@Module({ controllers: [McpController] })
class AppModule {}

const app = await NestFactory.create(AppModule);
app.use(authMiddleware({ cors: { origin: ['https://app.example'] } }));
await app.listen(3000, '127.0.0.1');
