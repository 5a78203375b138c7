// The same guard in front of the frameworks people use: what they hand over, and who answers when it refuses.
import assert from 'node:assert/strict';
import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import { describe, it } from 'node:test';
import { serve as serveHono } from '@hono/node-server';
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { createMcpHandler, McpServer, WebStandardStreamableHTTPServerTransport } from '@modelcontextprotocol/server';
import express, { type ErrorRequestHandler } from 'express';
import fastify from 'fastify';
import { Hono } from 'hono';
import { createMcpHandler as createVercelHandler } from 'mcp-handler';
import { authMiddleware, type AuthOptions, getAuthInfo, getUser, withAuth, withAuthFetch } from 'mcp-auth-middleware';
import { type Scope, serve } from './support/support.js';
import { ask, bearer, mint, serverKeys } from './support/wire.js';

const JWKS = '/.well-known/jwks.json';
const sub = (): string => String(getUser().sub ?? 'nobody');

/** What holds behind every adapter; `/mcp` answers with the sub, `/open` is public. */
async function holds(port: number): Promise<void> {
  const ada = await bearer({ sub: 'ada' });
  const rows: [request: Parameters<typeof ask>[1], status: number, body: RegExp][] = [
    [{ path: JWKS }, 200, /^\{"keys":\[\{"kty":"RSA"/],
    [{ path: JWKS, method: 'HEAD' }, 200, /^$/],
    [{ path: JWKS, method: 'OPTIONS' }, 204, /^$/],
    [{ path: JWKS, method: 'POST', body: 'x' }, 405, /"invalid_request"/],
    [{}, 401, /"invalid_token"/],
    [{ method: 'POST', body: '{}' }, 401, /"invalid_token"/],
    [{ method: 'HEAD' }, 401, /^$/],
    [
      { headers: { authorization: 'Bearer x' } },
      401,
      /^\{"error":"invalid_token","error_description":"The access token is invalid"\}$/,
    ],
    [{ headers: ada }, 200, /^ada$/],
    [{ headers: ada }, 200, /^ada$/],
    [
      { path: '/mcp?x=1', method: 'POST', body: '{}', headers: { ...ada, 'content-type': 'application/json' } },
      200,
      /^ada$/,
    ],
    [{ headers: { ...ada, origin: 'https://evil.example' } }, 403, /cors\.origin/],
    [{ path: '/open' }, 200, /^nobody$/],
    [{ path: '/open', headers: ada }, 200, /^nobody$/],
    [{ path: '/open/' }, 401, /"invalid_token"/],
  ];
  for (const [request, status, body] of rows) {
    const answer = await ask(port, request);
    assert.equal(answer.status, status, JSON.stringify(request));
    assert.match(answer.body, body, JSON.stringify(request));
    if (status === 401) assert.match(answer.headers['www-authenticate'] ?? '', /^Bearer/);
  }
  const users = await Promise.all(Array.from({ length: 10 }, (_, index) => bearer({ sub: `user ${index}` })));
  const answers = await Promise.all(
    Array.from({ length: 50 }, (_, index) =>
      ask(port, { method: 'POST', body: '{}', headers: { 'content-type': 'application/json', ...users[index % 10] } }),
    ),
  );
  assert.deepEqual(
    answers.map(({ body }) => body),
    answers.map((_, index) => `user ${index % 10}`),
  );
}
const options = async (): Promise<AuthOptions> => ({ keys: await serverKeys(), publicPaths: ['/open'] });

/** A chain as Connect runs it. */
type Middleware = (req: IncomingMessage, res: ServerResponse, next: (error?: unknown) => void) => void;
const chain =
  (...middlewares: Middleware[]): RequestListener =>
  (req, res) => {
    const run =
      (index: number) =>
      (error?: unknown): void => {
        if (error) res.writeHead(500).end(String(error));
        else middlewares[index]?.(req, res, run(index + 1));
      };
    run(0)();
  };

describe('authMiddleware in', () => {
  it('a chain as Connect runs it', async (t) => {
    const middleware = authMiddleware(await options());
    const { port } = await serve(
      t,
      chain(
        (_req, _res, next) => setImmediate(next),
        middleware,
        (_req, _res, next) => next(),
        (_req, res) => void res.end(sub()),
      ),
    );
    await holds(port);
  });

  it('Express 5, with body parsers and handlers behind it', async (t) => {
    const app = express();
    app.use(authMiddleware(await options()));
    app.use(express.json());
    app.all('/{*path}', async (req, res) => {
      await null;
      res.send(req.path === '/mcp' || req.path === '/open' ? sub() : 'elsewhere');
    });
    const { port } = await serve(t, app);
    await holds(port);
  });

  it('an Express router under a path: paths are still those of the whole URL', async (t) => {
    const app = express();
    app.use(
      '/api',
      authMiddleware({ keys: await serverKeys(), publicPaths: ['/api/open', '/inner'], jwksPath: '/api/keys' }),
      (req, res) => {
        res.send(`${sub()} ${req.url}`);
      },
    );
    app.use((_req, res) => {
      res.status(404).send('outside');
    });
    const { port } = await serve(t, app);
    const rows: [path: string, status: number, body: RegExp][] = [
      ['/api/keys', 200, /"keys"/],
      ['/api/open', 200, /^nobody \/open$/],
      ['/api/inner', 401, /invalid_token/],
      ['/inner', 404, /outside/],
      ['/keys', 404, /outside/],
      [JWKS, 404, /outside/],
      ['/api', 401, /invalid_token/],
      ['/API/open', 401, /invalid_token/],
    ];
    for (const [path, status, body] of rows) {
      const answer = await ask(port, { path });
      assert.equal(answer.status, status, path);
      assert.match(answer.body, body, path);
    }
    assert.equal((await ask(port, { path: '/api/x', headers: await bearer({ sub: 'ada' }) })).body, 'ada /x');
  });

  it('Express: what routes throw goes to its error handler, in the user’s context', async (t) => {
    const app = express();
    app.use(authMiddleware(await options()));
    app.get('/throws', () => {
      throw new Error('thrown');
    });
    app.get('/rejects', async () => {
      await null;
      throw new Error('rejected');
    });
    app.use(((error, _req, res, _next) => {
      res.status(500).send(`${String(error)} ${sub()}`);
    }) satisfies ErrorRequestHandler);
    const { port } = await serve(t, app);
    for (const what of ['throws', 'rejects']) {
      const { status, body } = await ask(port, { path: `/${what}`, headers: await bearer({ sub: what }) });
      assert.deepEqual([status, body], [500, `Error: ${what === 'throws' ? 'thrown' : 'rejected'} ${what}`]);
    }
  });

  it('Express: req.auth is what the MCP SDKs look for', async (t) => {
    const app = express();
    app.use(authMiddleware(await options()));
    app.get('/auth', (req, res) => {
      res.json('auth' in req ? [req.auth, getAuthInfo()] : []);
    });
    const { port } = await serve(t, app);
    const token = await mint({ sub: 'ada', scope: 'read' });
    const [onRequest, asked] = JSON.parse(
      (await ask(port, { path: '/auth', headers: { authorization: `Bearer ${token}` } })).body,
    );
    assert.deepEqual(onRequest, asked);
    assert.deepEqual([onRequest.token, onRequest.clientId, onRequest.scopes], [token, 'ada', ['read']]);
  });

  it('Fastify, as an onRequest hook with the raw pair', async (t) => {
    const middleware = authMiddleware(await options());
    const app = fastify();
    app.addHook('onRequest', (request, reply, done) =>
      middleware(request.raw, reply.raw, (error) => done(error instanceof Error ? error : undefined)),
    );
    app.all('/*', async () => {
      await null;
      return sub();
    });
    t.after(() => app.close());
    await holds(Number(new URL(await app.listen({ port: 0, host: '127.0.0.1' })).port));
  });

  it('Koa, with the raw pair', async (t) => {
    const middleware = authMiddleware(await options());
    const { default: Koa } = await importKoa();
    const app = new Koa();
    app.use(
      (ctx, next) =>
        new Promise<void>((resolve, reject) => {
          middleware(ctx.req, ctx.res, (error) => (error ? reject(error) : resolve(next())));
        }),
    );
    app.use(async (ctx) => {
      await null;
      ctx.body = sub();
    });
    const { port } = await serve(t, app.callback());
    await holds(port);
  });
});

/** Koa brings no types; this is what is used of it. */
interface KoaContext {
  req: IncomingMessage;
  res: ServerResponse;
  body: unknown;
}
interface Koa {
  use: (middleware: (ctx: KoaContext, next: () => Promise<void>) => Promise<void>) => void;
  callback: () => RequestListener;
}
async function importKoa(): Promise<{ default: new () => Koa }> {
  const name: string = 'koa';
  return await import(name);
}

describe('withAuthFetch in', () => {
  const listen = async (scope: Scope, fetch: (request: Request) => Response | Promise<Response>): Promise<number> => {
    const port = await new Promise<number>((resolve) => {
      const server = serveHono({ fetch, port: 0, hostname: '127.0.0.1' }, (info) => resolve(info.port));
      scope.after(() => server.close());
    });
    return port;
  };

  it('@hono/node-server, around an application of Hono', async (t) => {
    const app = new Hono();
    app.all('*', async (c) => {
      await c.req.text();
      return c.text(sub());
    });
    await holds(
      await listen(
        t,
        withAuthFetch((request) => app.fetch(request), await options()),
      ),
    );
  });

  it('Hono, as its middleware', async (t) => {
    const app = new Hono();
    const guarded = await options();
    app.use('*', (c, next) =>
      withAuthFetch(async () => {
        await next();
        return c.res;
      }, guarded)(c.req.raw),
    );
    app.all('*', async (c) => c.text(sub()));
    const port = await listen(t, app.fetch);
    assert.equal((await ask(port)).status, 401);
    assert.equal((await ask(port, { headers: await bearer({ sub: 'ada' }) })).body, 'ada');
  });

  /** Both versions of the tool answer with what the SDK and what getUser know. */
  const createServer = (): McpServer => {
    const mcp = new McpServer({ name: 'hello', version: '1.0.0' });
    mcp.registerTool('whoami', { description: 'Says who is asking' }, async (context: unknown) => {
      await null;
      const { http } = context as { http?: { authInfo?: { clientId?: string } } };
      return { content: [{ type: 'text', text: `${sub()} ${String(http?.authInfo?.clientId)}` }] };
    });
    return mcp;
  };
  async function whoami(port: number, who: object, path = '/mcp'): Promise<string> {
    const client = new Client({ name: 'test', version: '1.0.0' });
    await client.connect(
      new StreamableHTTPClientTransport(new URL(path, `http://127.0.0.1:${port}`), {
        requestInit: { headers: { ...who } },
      }),
    );
    try {
      return JSON.stringify((await client.callTool({ name: 'whoami', arguments: {} })).content);
    } finally {
      await client.close();
    }
  }
  const text = (value: string): string => JSON.stringify([{ type: 'text', text: value }]);

  it('front of the MCP SDK’s handler', async (t) => {
    const mcp = createMcpHandler(createServer);
    const port = await listen(
      t,
      withAuthFetch((request) => mcp.fetch(request, { authInfo: getAuthInfo() }), await options()),
    );
    const users = await Promise.all(Array.from({ length: 5 }, (_, index) => whoamiOf(`user ${index}`)));
    assert.deepEqual(
      users,
      users.map((_, index) => text(`user ${index} user ${index}`)),
    );
    assert.equal((await ask(port, { method: 'POST' })).status, 401);
    async function whoamiOf(name: string): Promise<string> {
      return whoami(port, await bearer({ sub: name }));
    }
  });

  it('front of its stateful transport, whose sessions are bound', async (t) => {
    const sessions = new Map<string, WebStandardStreamableHTTPServerTransport>();
    const port = await listen(
      t,
      withAuthFetch(
        async (request) => {
          let transport = sessions.get(request.headers.get('mcp-session-id') ?? '');
          if (!transport) {
            const made = new WebStandardStreamableHTTPServerTransport({
              sessionIdGenerator: () => crypto.randomUUID(),
              onsessioninitialized: (id) => {
                sessions.set(id, made);
              },
            });
            await createServer().connect(made);
            transport = made;
          }
          const authInfo = getAuthInfo();
          return transport.handleRequest(request, authInfo && { authInfo });
        },
        await options(),
      ),
    );
    assert.equal(await whoami(port, await bearer({ sub: 'ada' })), text('ada ada'));
    const [id] = sessions.keys();
    assert(id);
    const { status, body } = await ask(port, {
      method: 'POST',
      headers: { ...(await bearer({ sub: 'bob' })), 'mcp-session-id': id },
      body: '{}',
    });
    assert.deepEqual(
      [status, body],
      [404, '{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}'],
    );
  });

  it('front of mcp-handler', async (t) => {
    const handler = createVercelHandler((server) => {
      server.registerTool('whoami', { description: 'Says who is asking' }, async () => {
        await null;
        return { content: [{ type: 'text', text: sub() }] };
      });
    });
    const port = await listen(t, withAuthFetch(handler, await options()));
    assert.equal(await whoami(port, await bearer({ sub: 'ada' })), text('ada'));
    assert.equal((await ask(port, { method: 'POST' })).status, 401);
  });

  describe('a plain Request', () => {
    const send = async (request: Request, more: AuthOptions = {}): Promise<Response> =>
      withAuthFetch((req) => new Response(`${req.url} ${sub()} ${String('auth' in req)}`), {
        ...(await options()),
        ...more,
      })(request);

    it('gets request.auth and the arguments after it', async () => {
      const seen: unknown[] = [];
      const handler = withAuthFetch(
        (request: Request & { auth?: unknown }, env: { a: number }, context: string) => {
          seen.push(request.auth, getAuthInfo(), env, context);
          return new Response();
        },
        await options(),
      );
      await handler(new Request('http://a/mcp', { headers: await bearer({ sub: 'ada' }) }), { a: 1 }, 'context');
      assert.deepEqual(seen[0], seen[1]);
      assert.deepEqual(seen.slice(2), [{ a: 1 }, 'context']);
    });

    it('with two tokens, which the platform joined, is refused as with a bad one', async () => {
      const token = `Bearer ${await mint({ sub: 'ada' })}`;
      const headers = new Headers({ authorization: token });
      headers.append('authorization', token);
      const [two, bad] = [
        await send(new Request('http://a/mcp', { headers })),
        await send(new Request('http://a/mcp', { headers: { authorization: 'Bearer x' } })),
      ];
      assert.deepEqual([two.status, [...two.headers], await two.text()], [401, [...bad.headers], await bad.text()]);
    });

    it('counts with the path that the platform normalised', async () => {
      const rows: [url: string, status: number][] = [
        ['http://a/open', 200],
        ['http://a/x/../open', 200],
        ['http://a/open?x', 200],
        ['http://a//open', 401],
        ['http://a/open/', 401],
        ['http://a/%6fpen', 401],
        ['http://a/open%2f', 401],
        [`http://evil.example${JWKS}`, 200],
        [`http://a/${JWKS}`, 401],
      ];
      for (const [url, status] of rows) assert.equal((await send(new Request(url))).status, status, url);
    });

    it('gets the same refusal as over node:http, and no body for HEAD', async (t) => {
      const { port } = await serve(
        t,
        withAuth((_req, res) => void res.end(), await options()),
      );
      for (const [method, headers] of [
        ['GET', {}],
        ['HEAD', {}],
        ['POST', { authorization: 'Bearer x' }],
        ['GET', { origin: 'https://evil.example' }],
      ] as const) {
        const fetched = await send(new Request('http://a/mcp', { method, headers }));
        const {
          status,
          body,
          headers: { 'content-length': _, ...rest },
        } = await ask(port, { method, headers });
        assert.deepEqual(
          [fetched.status, await fetched.text(), Object.fromEntries(fetched.headers)],
          [status, body, rest],
        );
      }
    });

    it('whose sender is gone never reaches the handler', async () => {
      let reached = 0;
      const controller = new AbortController();
      const handler = withAuthFetch(
        () => {
          reached += 1;
          return new Response();
        },
        await options(),
      );
      const answer = handler(
        new Request('http://a/mcp', { headers: await bearer({ sub: 'gone' }), signal: controller.signal }),
      );
      controller.abort();
      await answer.catch(() => {});
      assert.equal(reached, 0);
    });

    it('gives what the handler throws to its caller', async () => {
      const boom = new Error('boom');
      const known = await bearer({ sub: 'ada' });
      const failing = [
        () => {
          throw boom;
        },
        async () => {
          throw boom;
        },
      ];
      for (const handler of failing) {
        const guarded = withAuthFetch(handler, await options());
        for (const headers of [known, known])
          await assert.rejects(guarded(new Request('http://a/mcp', { headers })), (error) => error === boom);
      }
    });
  });
});

describe('authMiddleware and unexpected errors', () => {
  it('gives an error that nobody expects to next', async (t) => {
    const boom = new Error('no clock');
    let broken = false;
    const middleware = authMiddleware({
      keys: await serverKeys(),
      now: () => {
        if (broken) throw boom;
        return Date.now() / 1000;
      },
    });
    const given: unknown[] = [];
    const { port } = await serve(t, (req, res) =>
      middleware(req, res, (error) => {
        given.push(error);
        res.end();
      }),
    );
    const headers = await bearer({ sub: 'ada' });
    broken = true;
    await ask(port, { headers });
    broken = false;
    await ask(port, { headers });
    assert.deepEqual(given, [boom, undefined]);
  });

  it('gives the error to next when someone before it has begun the answer', async (t) => {
    const middleware = authMiddleware({ keys: await serverKeys(), cors: { origin: '*' } });
    const given: unknown[] = [];
    const { port } = await serve(t, (req, res) => {
      res.flushHeaders();
      middleware(req, res, (error) => {
        given.push(error instanceof Error && 'code' in error ? error.code : error);
        res.end();
      });
    });
    const good = await bearer({ sub: 'ada' });
    for (const headers of [{}, { authorization: 'Bearer x' }, good, good]) await ask(port, { headers });
    assert.deepEqual(given, Array(4).fill('ERR_HTTP_HEADERS_SENT'));
  });
});
