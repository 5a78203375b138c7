// The same guard in front of what Node has: frameworks, fetch, https and HTTP/2; and the events that no request
// listener sees. The examples of examples/hosts/, as processes of their own, are in hosts.test.ts.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import {
  type ClientHttp2Session,
  connect,
  createSecureServer,
  createServer,
  type IncomingHttpHeaders,
} from 'node:http2';
import { createServer as createHttpsServer, request } from 'node:https';
import { type AddressInfo, type Server } from 'node:net';
import { text } from 'node:stream/consumers';
import { describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { getRequestListener, serve as serveHono } from '@hono/node-server';
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { createMcpHandler, McpServer, WebStandardStreamableHTTPServerTransport } from '@modelcontextprotocol/server';
import express, { type ErrorRequestHandler } from 'express';
import fastify, { type FastifyInstance, type FastifyPluginCallback } from 'fastify';
import { type Context, Hono, type Next } from 'hono';
import Koa from 'koa';
import { createMcpHandler as createVercelHandler } from 'mcp-handler';
import {
  AuthError,
  authMiddleware,
  type AuthOptions,
  bearerToken,
  getAuthInfo,
  getUser,
  JWETokenVerifier,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';
import { type Scope, serve } from './support/support.js';
import { untyped } from './support/tokens.js';
import { asHttp2, ask, bearer, exchange, guard, mint, serverKeys } from './support/wire.js';

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
    app.addHook('onRequest', (request, reply, done) => middleware(request.raw, reply.raw, done));
    app.all('/*', async () => {
      await null;
      return sub();
    });
    t.after(() => app.close());
    await holds(Number(new URL(await app.listen({ port: 0, host: '127.0.0.1' })).port));
  });

  it('Koa, with the raw pair', async (t) => {
    const middleware = authMiddleware(await options());
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
    const auth = withAuthFetch(
      async (_request, c: Context, next: Next) => {
        await next();
        return c.res;
      },
      await options(),
    );
    app.use('*', async (c, next) => {
      c.res = await auth(c.req.raw, c, next);
    });
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

    it('that gives no Response, as on Bun for a WebSocket, is passed on', async () => {
      const handler = withAuthFetch(() => untyped<Response>(undefined), {
        ...(await options()),
        cors: { origin: '*' },
      });
      const request = new Request('http://a/mcp', { headers: await bearer({ sub: 'ada' }) });
      assert.equal(await handler(request), undefined);
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
  it('answers 500 when judging a token fails in a way that nobody foresaw, and goes on', async (t) => {
    let broken = false;
    const middleware = authMiddleware({
      keys: await serverKeys(),
      now: () => {
        if (broken) throw new Error('no clock');
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
    const { status, body } = await ask(port, { headers });
    assert.deepEqual([status, JSON.parse(body).error], [500, 'server_error']);
    assert.ok(!body.includes('clock'));
    broken = false;
    assert.equal((await ask(port, { headers })).status, 200);
    assert.deepEqual(given, [undefined]);
  });

  it('gives an error of the response to next', async (t) => {
    const boom = new Error('no head');
    const middleware = authMiddleware({ keys: await serverKeys(), cors: { origin: '*' } });
    const given: unknown[] = [];
    const { port } = await serve(t, (req, res) => {
      const { setHeader, writeHead } = res;
      const fail = (): never => {
        throw boom;
      };
      Object.assign(res, { setHeader: fail, writeHead: fail });
      middleware(req, res, (error) => {
        given.push(error);
        Object.assign(res, { setHeader, writeHead }).end();
      });
    });
    const good = await bearer({ sub: 'ada' });
    for (const headers of [{}, { authorization: 'Bearer x' }, good, good]) await ask(port, { headers });
    assert.deepEqual(given, Array(4).fill(boom));
  });

  it('gives next an Error whatever was thrown: what is falsy, or a way around, opens no gate', async (t) => {
    const middleware = authMiddleware({ keys: await serverKeys() });
    const given: unknown[] = [];
    const thrown = [undefined, null, false, 0, '', 'route', 'router', { status: 200 }];
    let next = thrown[0];
    const { port } = await serve(t, (req, res) => {
      const { writeHead } = res;
      res.writeHead = () => {
        throw next;
      };
      middleware(req, res, (error) => {
        given.push(error);
        Object.assign(res, { writeHead }).end();
      });
    });
    for (next of thrown) await ask(port);
    assert.equal(given.length, thrown.length);
    for (const [at, error] of given.entries()) {
      assert.ok(error instanceof Error);
      assert.deepEqual([error.message, error.cause], ['mcp-auth-middleware failed', thrown[at]]);
    }
  });

  it('leaves an answer that someone before it has begun to them', async (t) => {
    const middleware = authMiddleware({ keys: await serverKeys(), cors: { origin: '*' } });
    const { port } = await serve(t, (req, res) => {
      res.writeHead(202).write('begun');
      middleware(req, res, () => assert.fail('never goes on'));
      setTimeout(() => res.end(', and ended'), 50);
    });
    const good = await bearer({ sub: 'ada' });
    for (const headers of [{}, { authorization: 'Bearer x' }, good, good]) {
      const { status, body } = await ask(port, { headers });
      assert.deepEqual([status, body], [202, 'begun, and ended']);
    }
  });
});

// ## What the examples of examples/hosts/ warn of
// ------------------------------------------------

describe('mounts and hooks that lose something', () => {
  const open = async (t: Scope, app: FastifyInstance): Promise<number> => {
    t.after(() => app.close());
    return Number(new URL(await app.listen({ port: 0, host: '127.0.0.1' })).port);
  };
  const known = (): Promise<{ authorization: string }> => bearer({ sub: 'ada' });

  it('an async hook of Fastify leaves the context, and getUser(request.raw) still knows the user', async (t) => {
    const middleware = authMiddleware(await options());
    const app = fastify();
    app.addHook('onRequest', async (request, reply) => {
      await new Promise((resolve) => middleware(request.raw, reply.raw, resolve));
    });
    app.get('/mcp', (request, reply) => void reply.send(`${sub()} ${getUser(request.raw).sub}`));
    app.get('/wrapper', (request, reply) => void reply.send(getUser(request)));
    const port = await open(t, app);
    assert.equal((await ask(port, { headers: await known() })).body, 'nobody ada');
    const wrapped = await ask(port, { path: '/wrapper', headers: await known() });
    assert.deepEqual([wrapped.status, JSON.parse(wrapped.body).code], [500, 'option']);
  });

  it('a Fastify plugin without fastify-plugin guards nothing beside it', async (t) => {
    const middleware = authMiddleware(await options());
    const plugin: FastifyPluginCallback = (scope, _options, done) => {
      scope.addHook('onRequest', (request, reply, next) => middleware(request.raw, reply.raw, next));
      done();
    };
    const app = fastify().register(plugin);
    app.get('/mcp', (_request, reply) => void reply.send(sub()));
    const port = await open(t, app);
    const { status, body } = await ask(port);
    assert.deepEqual([status, body], [200, 'nobody']);
    assert.equal((await ask(port, { path: JWKS })).status, 404);
  });

  it('a guard on one path of Express hides the public key, unless /.well-known is its too', async (t) => {
    for (const [paths, status] of [
      [['/mcp'], 404],
      [['/mcp', '/.well-known'], 200],
    ] as const) {
      const app = express();
      app.use([...paths], authMiddleware(await options()));
      const { port } = await serve(t, app);
      assert.equal((await ask(port, { path: JWKS })).status, status);
      assert.equal((await ask(port)).status, 401);
    }
  });

  it('a response that Hono’s middleware returns is dropped, and with it the headers for pages', async (t) => {
    const origin = 'https://app.example';
    const auth = withAuthFetch(
      async (_request, c: Context, next: Next) => {
        await next();
        return new Response(c.res.body, c.res);
      },
      { ...(await options()), cors: { origin: [origin] } },
    );
    const returned = new Hono().use((c, next) => auth(c.req.raw, c, next)).all('*', (c) => c.text(sub()));
    const assigned = new Hono()
      .use(async (c, next) => {
        c.res = await auth(c.req.raw, c, next);
      })
      .all('*', (c) => c.text(sub()));
    for (const [app, allowed] of [
      [returned, undefined],
      [assigned, origin],
    ] as const) {
      const { port } = await serve(t, getRequestListener(app.fetch));
      const { body, headers } = await ask(port, { headers: { ...(await known()), origin } });
      assert.deepEqual([body, headers['access-control-allow-origin']], ['ada', allowed]);
    }
  });

  it('a fetch transport without authInfo leaves the SDK without it, while getUser() knows the user', async (t) => {
    const mcp = createMcpHandler(() => {
      const server = new McpServer({ name: 'hello', version: '1.0.0' });
      server.registerTool('whoami', { description: 'Says who is asking' }, ({ http }) => ({
        content: [{ type: 'text', text: `${sub()} ${String(http?.authInfo?.clientId)}` }],
      }));
      return server;
    });
    const call = { jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'whoami', arguments: {} } };
    const headers = {
      ...(await known()),
      'content-type': 'application/json',
      accept: 'application/json, text/event-stream',
    };
    for (const [handler, text] of [
      [(request: Request) => mcp.fetch(request), 'ada undefined'],
      [(request: Request) => mcp.fetch(request, { authInfo: getAuthInfo() }), 'ada ada'],
    ] as const) {
      const { port } = await serve(t, getRequestListener(withAuthFetch(handler, await options())));
      const { body } = await ask(port, { method: 'POST', headers, body: JSON.stringify(call) });
      assert.ok(body.includes(`"text":"${text}"`), body);
    }
  });
});

// ## Node's other servers
// ----------------------

// TLS with a key both sides have (RFC 4279): it needs no certificate.
const psk = Buffer.alloc(32, 7);
const tls = { ciphers: 'PSK', minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' } as const;
const serverTls = { ...tls, pskIdentityHint: 'test', pskCallback: () => psk };
const clientTls = { ...tls, pskCallback: () => ({ psk, identity: 'test' }), checkServerIdentity: () => undefined };

async function listenOn(scope: Scope, server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  scope.after(() => server.close());
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

async function connectHttp2(scope: Scope, origin: string): Promise<ClientHttp2Session> {
  const client = connect(origin, origin.startsWith('https') ? clientTls : {});
  scope.after(() => client.destroy());
  await once(client, 'connect');
  return client;
}

interface Http2Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: string;
}
async function fetchOver(
  client: ClientHttp2Session,
  headers: Record<string, string> = {},
  body?: string,
): Promise<Http2Answer> {
  const stream = client.request(
    { ':path': '/mcp', ...(body !== undefined && { ':method': 'POST' }), ...headers },
    { endStream: body === undefined },
  );
  const answered = once(stream, 'response');
  if (body !== undefined) {
    stream.write(body.slice(0, 1));
    await delay(2);
    stream.end(body.slice(1));
  }
  const [{ ':status': status, date: _date, ...rest }] = await answered;
  return { status: Number(status), headers: Object.fromEntries(Object.entries(rest)), body: await text(stream) };
}

/** Who asks, at every moment of a request. */
const everywhere: RequestListener = async (req, res) => {
  const seen: unknown[] = [getUser().sub ?? 'nobody'];
  const look = (): void => {
    seen.push(getUser().sub ?? 'nobody');
  };
  res.on('finish', look).on('close', () => {
    look();
    finished.push(new Set(seen).size);
  });
  const read = once(req.on('data', look).on('end', look), 'end');
  await delay(Math.random() * 5);
  look();
  await read;
  setTimeout(() => {
    look();
    res.setHeader('content-type', 'application/json');
    res.end(JSON.stringify([...new Set(seen)]));
  }, 1);
};
const finished: number[] = [];

describe('over HTTP/2', () => {
  for (const scheme of ['http', 'https'] as const) {
    const start = async (
      t: Scope,
      handler: RequestListener,
      options: AuthOptions = {},
    ): Promise<ClientHttp2Session> => {
      const listener = asHttp2(withAuth(handler, { keys: await serverKeys(), ...options }));
      const port = await listenOn(
        t,
        scheme === 'http' ? createServer(listener) : createSecureServer(serverTls, listener),
      );
      return connectHttp2(t, `${scheme}://127.0.0.1:${port}`);
    };

    it(`(${scheme}) requests get the same answers as over HTTP/1`, async (t) => {
      const options: AuthOptions = {
        resource: 'https://mcp.example/mcp',
        cors: { origin: ['https://app.example'] },
        requiredClaims: ['email'],
        publicPaths: ['/open'],
      };
      const handler: RequestListener = (_req, res) => {
        res.setHeader('content-type', 'text/plain');
        res.end(String(getUser()['email']));
      };
      const client = await start(t, handler, options);
      const { port } = await guard(t, options, handler);
      const rows: Record<string, string>[] = [
        {},
        { authorization: 'Bearer x' },
        await bearer({ email: 'e' }),
        await bearer({}),
        { origin: 'https://evil.example' },
        { ':path': '/open' },
        { ':path': '/open/' },
        { ':path': '/.well-known/jwks.json' },
        { ':path': '/.well-known/jwks.json', ':method': 'HEAD' },
        { ':path': '/.well-known/jwks.json', ':method': 'OPTIONS' },
        { ':path': '/.well-known/jwks.json', ':method': 'DELETE' },
        { ':path': '/.well-known/oauth-protected-resource' },
        { ':path': '//.well-known/jwks.json' },
        { ':method': 'HEAD' },
        { ':method': 'OPTIONS', origin: 'https://app.example', 'access-control-request-method': 'POST' },
        { origin: 'https://app.example' },
      ];
      for (const headers of rows) {
        const { ':path': path = '/mcp', ':method': method = 'GET', ...fields } = headers;
        const [over2, over1] = [await fetchOver(client, headers), await ask(port, { path, method, headers: fields })];
        // How long a body is that the handler sends is Node's affair, and HTTP/2 needs no length.
        for (const answer of [over1, over2])
          if (answer.status === 200 && answer.headers['content-type'] === 'text/plain')
            delete answer.headers['content-length'];
        assert.deepEqual(over2, over1, JSON.stringify(headers));
      }
    });

    it(`(${scheme}) streams of many users on one connection are kept apart, in all their events`, async (t) => {
      const client = await start(t, everywhere, { anonymous: true });
      const users = [
        ...(await Promise.all(
          Array.from(
            { length: 10 },
            async (_, index) => [`user ${index}`, await bearer({ sub: `user ${index}` })] as const,
          ),
        )),
        ['nobody', {}] as const,
      ];
      const asked = Array.from({ length: 80 }, (_, index) => users[(index * 4) % 11] ?? assert.fail());
      finished.length = 0;
      const answers = await Promise.all(asked.map(([, headers]) => fetchOver(client, { ...headers }, 'body')));
      assert.deepEqual(
        answers.map(({ body }) => JSON.parse(body)),
        asked.map(([sub]) => [sub]),
      );
      for (let waited = 0; finished.length < 80 && waited < 2000; waited += 5) await delay(5);
      assert.deepEqual(finished, Array(80).fill(1));
    });

    it(`(${scheme}) sessions are bound, whichever way the answer is begun`, async (t) => {
      const ways: Record<string, (res: Parameters<RequestListener>[1], id: string) => void> = {
        end: (res, id) => {
          res.setHeader('mcp-session-id', id);
          res.end();
        },
        write: (res, id) => {
          res.setHeader('mcp-session-id', id);
          res.write('x');
          res.end();
        },
        flush: (res, id) => {
          res.setHeader('mcp-session-id', id);
          res.flushHeaders();
          res.end();
        },
        object: (res, id) => {
          res.writeHead(200, { 'Mcp-Session-Id': id });
          res.end();
        },
      };
      const client = await start(t, (req, res) => {
        const way = String(req.headers['x-way']);
        if (ways[way]) ways[way](res, way);
        else res.end();
      });
      const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
      for (const way of Object.keys(ways)) {
        assert.equal((await fetchOver(client, { ...ada, 'x-way': way })).headers['mcp-session-id'], way);
        assert.deepEqual(
          [
            (await fetchOver(client, { ...ada, 'mcp-session-id': way })).status,
            (await fetchOver(client, { ...bob, 'mcp-session-id': way })).status,
          ],
          [200, 404],
          way,
        );
      }
    });

    it(`(${scheme}) a stream that is reset while its token is decrypted never reaches the handler`, async (t) => {
      const reached: unknown[] = [];
      const client = await start(t, (_req, res) => {
        reached.push(getUser().sub);
        res.end();
      });
      // Reset in the packet that asks: the server knows before the first of the decryptions is done.
      const gone = await Promise.all(Array.from({ length: 5 }, () => bearer({ sub: 'gone' })));
      for (const headers of gone)
        client
          .request({ ':path': '/', ...headers })
          .on('error', () => {})
          .close(8);
      assert.equal((await fetchOver(client, await bearer({ sub: 'here' }))).status, 200);
      await delay(20);
      assert.deepEqual(reached, ['here']);
    });
  }

  it('a server for both versions serves both', async (t) => {
    const listener = asHttp2(
      withAuth(
        (req, res) => {
          res.end(`${req.httpVersion} ${getUser().sub}`);
        },
        { keys: await serverKeys() },
      ),
    );
    const port = await listenOn(t, createSecureServer({ ...serverTls, allowHTTP1: true }, listener));
    const headers = await bearer({ sub: 'ada' });
    const client = await connectHttp2(t, `https://127.0.0.1:${port}`);
    assert.equal((await fetchOver(client, headers)).body, '2.0 ada');
    const [res] = await once(
      request({ port, host: '127.0.0.1', agent: false, ...clientTls, headers }).end(),
      'response',
    );
    assert.equal(await text(res), '1.1 ada');
  });
});

describe('over https', () => {
  it('requests get the same answers, in the user’s context', async (t) => {
    const port = await listenOn(t, createHttpsServer(serverTls, withAuth(everywhere, { keys: await serverKeys() })));
    const send = async (
      method: string,
      path: string,
      headers: Record<string, string> = {},
    ): Promise<[number | undefined, string]> => {
      const [res] = await once(
        request({ port, host: '127.0.0.1', method, path, agent: false, ...clientTls, headers }).end('body'),
        'response',
      );
      return [res.statusCode, await text(res)];
    };
    assert.deepEqual(await send('POST', '/mcp', await bearer({ sub: 'ada' })), [200, '["ada"]']);
    assert.equal((await send('POST', '/mcp'))[0], 401);
    assert.equal((await send('GET', '/.well-known/jwks.json'))[0], 200);
  });
});

describe('what a listener of requests never sees', () => {
  const upgrade = (fields: string): string =>
    `GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n${fields}\r\n`;

  it('an upgrade, which a handler of its own authenticates with the same verifier', async (t) => {
    let requests = 0;
    const verifier = new JWETokenVerifier({ keys: await serverKeys() });
    const { server, port } = await guard(t, { verifier }, (_req, res) => {
      requests += 1;
      res.end();
    });
    server.on('upgrade', async (req, socket) => {
      try {
        const token = bearerToken(req);
        const { user, token: received } = await verifier.authenticate(token);
        socket.end(`HTTP/1.1 101 ${user.sub} ${received === token} ${getUser().sub}\r\n\r\n`);
      } catch (error) {
        socket.end(`HTTP/1.1 ${error instanceof AuthError ? error.status : 500}\r\n\r\n`);
      }
    });
    const token = await mint({ sub: 'ada' });
    assert.equal(
      await exchange(port, upgrade(`Authorization: Bearer ${token}\r\n`)),
      'HTTP/1.1 101 ada true undefined\r\n\r\n',
    );
    for (const fields of ['', 'Authorization: Bearer x\r\n', `Authorization: Bearer ${token}x\r\n`])
      assert.equal(await exchange(port, upgrade(fields)), 'HTTP/1.1 401\r\n\r\n');
    assert.equal(requests, 0);
  });

  it('but without an upgrade handler it is a request as any other', async (t) => {
    const { port } = await guard(t, {}, (_req, res) => {
      res.setHeader('connection', 'close').end();
    });
    assert.match(await exchange(port, upgrade('').replace('Upgrade\r\n', 'Upgrade, close\r\n')), /^HTTP\/1\.1 401 /);
  });

  it('a CONNECT, which has a handler of its own or none', async (t) => {
    let reached = 0;
    const { server, port } = await guard(t, { anonymous: true }, (_req, res) => {
      reached += 1;
      res.end();
    });
    assert.equal(await exchange(port, 'CONNECT a:443 HTTP/1.1\r\nHost: localhost\r\n\r\n'), '');
    server.on('connect', (_req, socket) => {
      socket.end('HTTP/1.1 200 own\r\n\r\n');
    });
    assert.equal(await exchange(port, 'CONNECT a:443 HTTP/1.1\r\nHost: localhost\r\n\r\n'), 'HTTP/1.1 200 own\r\n\r\n');
    assert.equal(reached, 0);
  });

  it('checkContinue and checkExpectation, which take the same listener: it refuses before the body', async (t) => {
    const listener = withAuth(
      async (req, res) => {
        if (req.headers.expect === '100-continue') res.writeContinue();
        res.end(`${getUser().sub} ${await text(req)} ${getUser().sub}`);
      },
      { keys: await serverKeys() },
    );
    const { server, port } = await guard(t, {}, () => assert.fail('the other listener'));
    server.on('checkContinue', listener).on('checkExpectation', listener);
    const head = (expect: string, fields = ''): string =>
      `POST / HTTP/1.1\r\nHost: localhost\r\nExpect: ${expect}\r\nContent-Length: 4\r\nConnection: close\r\n` +
      `${fields}\r\n`;
    const good = `Authorization: Bearer ${await mint({ sub: 'ada' })}\r\n`;
    for (const expect of ['100-continue', 'more']) {
      const refused = await exchange(port, head(expect));
      assert.match(refused, /^HTTP\/1\.1 401 /);
      const accepted = await exchange(port, `${head(expect, good)}body`);
      assert.match(
        accepted,
        expect === 'more' ? /^HTTP\/1\.1 200 OK\r\n/ : /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 OK\r\n/,
      );
      assert.match(accepted, /ada body ada/);
    }
  });

  it('and by default Node invites the body itself, before the listener decides', async (t) => {
    const { port } = await guard(t);
    const answer = await exchange(
      port,
      'POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n' +
        'Content-Length: 4\r\nConnection: close\r\n\r\nbody',
    );
    assert.match(answer, /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 401 /);
  });
});
