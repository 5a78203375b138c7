// No request ends the process, whatever its host, the runtime or another middleware does: what goes wrong here is one
// answer, one event and one warning.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { connect as connectHttp2, createServer as createHttp2 } from 'node:http2';
import { type AddressInfo, connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { after, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import {
  type AuthEvent,
  authMiddleware,
  type AuthOptions,
  encryptToken,
  getUser,
  JWETokenVerifier,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';
import { hold } from './support/rsa.js';
import { keyPair, root, run, type Scope, serve, until } from './support/support.js';
import { ask, type Ask, bearer, exchange, guard, mint, serverKeys } from './support/wire.js';

const ADAPTERS = ['withAuth', 'authMiddleware'] as const;
type Adapter = (typeof ADAPTERS)[number];
type NodeListener = (req: IncomingMessage, res: ServerResponse) => unknown;

/** The same handler behind either adapter. */
function wrap(adapter: Adapter, handler: NodeListener, options: AuthOptions): NodeListener {
  if (adapter === 'withAuth') return withAuth(handler, options);
  const middleware = authMiddleware(options);
  return (req, res) =>
    middleware(req, res, (error) => {
      if (error) throw error;
      handler(req, res);
    });
}

const forge = (token: string): string => `${token.slice(0, -22)}${'A'.repeat(22)}`;
const failure = {
  status: 500,
  body: '{"error":"server_error","error_description":"The server failed to judge this request"}',
};

describe('a server that refuses a body where there is none', () => {
  const origin = 'https://app.example';
  const asks: [name: string, request: () => Promise<Ask> | Ask, status: number][] = [
    ['no token', () => ({}), 401],
    ['a bad token', () => ({ headers: { authorization: 'Bearer x' } }), 401],
    ['two tokens', () => ({ headers: { authorization: ['Bearer x', 'Bearer y'] } }), 400],
    ['a foreign Host', () => ({ headers: { host: 'evil.example' } }), 403],
    ['a foreign Origin', () => ({ headers: { origin: 'https://evil.example' } }), 403],
    ['a missing claim', async () => ({ headers: await bearer({ sub: 'ada' }) }), 403],
    ['a token that is good', async () => ({ headers: await bearer({ sub: 'ada', email: 'e' }) }), 200],
    [
      'a session that is no id',
      async () => ({ headers: { ...(await bearer({ email: 'e' })), 'mcp-session-id': 'a b' } }),
      400,
    ],
    ['the key set', () => ({ path: '/.well-known/jwks.json' }), 200],
    ['the metadata', () => ({ path: '/.well-known/oauth-protected-resource' }), 200],
    ['a public path', () => ({ path: '/open' }), 200],
  ];
  for (const adapter of ADAPTERS) {
    for (const method of ['HEAD', 'GET', 'OPTIONS', 'POST', 'DELETE']) {
      it(`answers ${method} as any other, over ${adapter}`, async (t) => {
        const options: AuthOptions = {
          keys: await serverKeys(),
          cors: { origin: [origin] },
          resource: 'https://mcp.example/mcp',
          requiredClaims: ['email'],
          publicPaths: ['/open'],
        };
        const listener = wrap(adapter, (_req, res) => res.end(), options);
        const plain = await serve(t, listener);
        const strict = createServer({ rejectNonStandardBodyWrites: true }, listener).listen(0, '127.0.0.1');
        t.after(() => strict.close());
        await once(strict, 'listening');
        const { port } = strict.address() as AddressInfo;
        const preflight = { origin, 'access-control-request-method': 'POST' };
        const all: typeof asks = [
          ...asks,
          ['a preflight', () => ({ headers: preflight }), method === 'OPTIONS' ? 204 : 401],
        ];
        for (const [name, make, status] of all) {
          const request = { ...(await make()), method };
          const expected = await ask(plain.port, request);
          assert.deepEqual(await ask(port, request), expected, name);
          const isDocument = request.path?.startsWith('/.well-known/');
          const wanted =
            isDocument && method === 'OPTIONS' ? 204 : isDocument && !/GET|HEAD/.test(method) ? 405 : status;
          assert.equal(expected.status, wanted, name);
          if (method === 'HEAD') assert.equal(expected.body, '', name);
        }
      });
    }
  }

  it('answers HEAD while no key is valid, and a HEAD with too many new tokens', async (t) => {
    const exp = Math.floor(Date.now() / 1000) + 10;
    let clock = exp - 1;
    const keys = { keys: [{ ...(await keyPair()).privateJwk, exp }] };
    const strict = createServer(
      { rejectNonStandardBodyWrites: true },
      withAuth((_req, res) => res.end(), { keys, now: () => clock }),
    ).listen(0, '127.0.0.1');
    t.after(() => strict.close());
    await once(strict, 'listening');
    const { port } = strict.address() as AddressInfo;
    clock = exp;
    for (const request of [{ path: '/.well-known/jwks.json' }, { headers: await bearer({}) }]) {
      const { status, body, headers } = await ask(port, { ...request, method: 'HEAD' });
      assert.deepEqual([status, body, headers['retry-after']], [503, '', '1']);
    }
  });
});

describe('an answer that somebody else', () => {
  /** Called with the answers of HTTP/2 as well, whose types are not those of node:http. */
  type Answering = (res: ServerResponse) => unknown;
  const ways: Record<string, Answering> = {
    'has given': (res) => res.writeHead(503).end('theirs'),
    'has begun': (res) => {
      res.writeHead(503);
      res.write('the');
      setTimeout(() => res.end('irs'), 60);
    },
    'has sent the head of': (res) => {
      res.writeHead(503);
      res.flushHeaders();
      setTimeout(() => res.end('theirs'), 60);
    },
    'has sent an implicit head of': (res) => {
      res.statusCode = 503;
      res.write('theirs');
      setTimeout(() => res.end(), 60);
    },
  };
  const asks: Record<string, (token: string) => Record<string, string>> = {
    'a new token': (token) => ({ authorization: `Bearer ${token}` }),
    'a forged token': (token) => ({ authorization: `Bearer ${forge(token)}` }),
    'no token': () => ({}),
    'a foreign Origin': () => ({ origin: 'https://evil.example' }),
  };

  /** One answer of theirs, nothing of ours beside it, and the server goes on. */
  async function holds(
    t: Scope,
    adapter: Adapter,
    host: 'http' | 'http2',
    answering: Answering,
    when: 'before' | 'meanwhile',
    fields: (token: string) => Record<string, string>,
    path: string,
  ): Promise<void> {
    let reached = 0;
    const errors: unknown[] = [];
    const options: AuthOptions = { keys: await serverKeys(), publicPaths: ['/open'] };
    const guarded = wrap(adapter, (_req, res) => void ((reached += 1), res.end('ours')), options);
    let first = true;
    const listener = (req: IncomingMessage, res: ServerResponse): void => {
      res.on('error', (error) => errors.push(error));
      const mine = first;
      first = false;
      if (mine && when === 'before') answering(res);
      guarded(req, res);
      if (mine && when === 'meanwhile')
        setTimeout(() => {
          answering(res);
          answered();
        }, 5);
    };
    let answered = (): void => {};
    const theirs = new Promise<void>((resolve) => {
      answered = resolve;
    });
    const release = when === 'meanwhile' ? hold(t) : (): void => {};
    const token = await mint({ sub: `${Math.random()}` });
    const headers = fields(token);
    const server: Server = Reflect.apply(host === 'http' ? createServer : createHttp2, undefined, [listener]);
    server.listen(0, '127.0.0.1');
    t.after(() => server.close());
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const send = host === 'http' ? sendHttp : sendHttp2;
    const answer = send(port, path, headers);
    if (when === 'meanwhile') await theirs;
    release();
    assert.deepEqual(await answer, { status: 503, body: 'theirs' });
    await delay(80);
    assert.deepEqual([reached, errors], [0, []]);
    assert.deepEqual(await send(port, '/mcp', { authorization: `Bearer ${token}` }), { status: 200, body: 'ours' });
    assert.equal(reached, 1);
  }
  const sendHttp = async (port: number, path: string, headers: Record<string, string>): Promise<object> => {
    const { status, body } = await ask(port, { path, headers });
    return { status, body };
  };
  const sendHttp2 = async (port: number, path: string, headers: Record<string, string>): Promise<object> => {
    const session = connectHttp2(`http://localhost:${port}`, { createConnection: () => connect(port, '127.0.0.1') });
    try {
      const stream = session.request({ ':path': path, ...headers }).end();
      const [head] = (await once(stream, 'response')) as [Record<string, unknown>];
      return { status: head[':status'], body: await text(stream) };
    } finally {
      session.close();
    }
  };

  for (const adapter of ADAPTERS) {
    for (const host of ['http', 'http2'] as const) {
      for (const [way, answering] of Object.entries(ways)) {
        it(`${way} before is left to him, over ${adapter} and ${host}`, async (t) => {
          for (const fields of Object.values(asks)) await holds(t, adapter, host, answering, 'before', fields, '/mcp');
          for (const path of ['/open', '/.well-known/jwks.json'])
            await holds(t, adapter, host, answering, 'before', () => ({}), path);
        });
        for (const kind of ['a new token', 'a forged token']) {
          it(`${way} while ${kind} waits is left to him, over ${adapter} and ${host}`, (t) =>
            holds(t, adapter, host, answering, 'meanwhile', asks[kind] ?? assert.fail(), '/mcp'));
        }
      }
    }
  }

  it('has given, and that is not out yet because an earlier one of its connection is, is left', async (t) => {
    for (const adapter of ADAPTERS) {
      let reached = 0;
      const handler: NodeListener = async (req, res) => {
        reached += 1;
        if (req.url === '/open') await delay(150);
        res.end('ours');
      };
      const guarded = wrap(adapter, handler, { keys: await serverKeys(), publicPaths: ['/open'] });
      const { port } = await serve(t, (req, res) => {
        guarded(req, res);
        if (req.url !== '/open') setTimeout(() => res.headersSent || res.writeHead(503).end('theirs'), 5);
      });
      const release = hold(t);
      const token = await mint({ sub: 'ada' });
      const tokens = [
        token,
        forge(token),
        'x',
        ...Array.from({ length: 20 }, (_, n) => `${token.slice(0, -n - 30)}AA`),
      ];
      const head = (path: string, more: string): string => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n${more}\r\n`;
      const answers = exchange(
        port,
        head('/open', '') +
          tokens.map((one) => head('/mcp', `Authorization: Bearer ${one}\r\n`)).join('') +
          head('/open', 'Connection: close\r\n'),
      );
      await delay(50);
      release();
      const statuses = [...(await answers).matchAll(/HTTP\/1\.1 (\d{3}) /g)].map(([, status]) => status);
      assert.deepEqual(
        statuses,
        ['200', '503', '503', '401', ...Array.from({ length: 20 }, () => '401'), '200'],
        adapter,
      );
      assert.equal(reached, 2, adapter);
    }
  });
});

describe('frozen intrinsics', () => {
  const program = `
    import { createServer, request } from 'node:http';
    import { connect } from 'node:net';
    import * as library from 'mcp-auth-middleware';
    const { withAuth, withAuthFetch, authMiddleware, getUser, runAs, JWETokenVerifier } = library;
    const [how] = process.argv.slice(1);
    const { keys, tokens } = JSON.parse(process.env.TEST_INPUT);
    if (how === 'Object.freeze(Error)') [Error, TypeError, RangeError].forEach(Object.freeze);
    if (how === 'no stackTraceLimit') delete Error.stackTraceLimit;
    const results = [];
    const options = { keys, requiredScopes: ['read'], resource: 'https://mcp.example/mcp', cors: { origin: '*' } };
    const middleware = authMiddleware(options);
    const handler = (req, res) => res.end(String(getUser().sub));
    for (const listener of [withAuth(handler, options), (req, res) => middleware(req, res, () => handler(req, res))]) {
      const server = createServer(listener).listen(0, '127.0.0.1');
      await new Promise((resolve) => server.once('listening', resolve));
      const { port } = server.address();
      const send = (headers, path = '/mcp', method = 'GET') => new Promise((resolve) => {
        const req = request({ host: '127.0.0.1', port, path, method, headers, agent: false }, (res) => {
          let body = '';
          res.on('data', (chunk) => { body += chunk; });
          res.on('end', () => resolve(res.statusCode + ' ' + body.slice(0, 60)));
        });
        req.on('error', (error) => resolve(error.code)).end();
      });
      for (const token of tokens) results.push(await send({ authorization: 'Bearer ' + token }));
      results.push(
        await send({}), await send({ authorization: ['Bearer x', 'Bearer y'] }),
        await send({ origin: 'null' }, '/x', 'POST'),
        await send({ host: 'evil.example' }), await send({}, '/.well-known/jwks.json', 'PUT'),
        await send({ authorization: 'Bearer ' + tokens[0], 'mcp-session-id': 'a b' }), await send({}, '/x', 'HEAD'),
      );
      server.closeAllConnections();
      server.close();
    }
    const answer = withAuthFetch(() => new Response(String(getUser().sub)), options);
    const verifier = new JWETokenVerifier({ keys });
    for (const token of tokens) {
      const { status } = await answer(new Request('http://a/', { headers: { authorization: 'Bearer ' + token } }));
      const told = await verifier.verifyToken(token).then(({ sub }) => sub, ({ reason }) => reason);
      results.push(status + ' ' + told);
    }
    results.push(runAs({ user: { sub: 'ada' } }, () => getUser().sub));
    try { new JWETokenVerifier({ keys: {} }); } catch ({ name, code }) { results.push(name + ' ' + code); }
    console.log(JSON.stringify(results));`;
  it('change no answer and end no process', async () => {
    const good = await mint({ sub: 'ada', scope: 'read' });
    const tokens = [good, forge(good), 'x', '', await mint({ sub: 'ada' }), await mint({ iat: 1, exp: 2 })];
    const input = JSON.stringify({ keys: await serverKeys(), tokens });
    const results = await Promise.all(
      [
        ['as it is'],
        ['--frozen-intrinsics'],
        ['Object.freeze(Error)'],
        ['no stackTraceLimit'],
        ['--disable-proto=delete'],
        ['--disable-proto=throw'],
      ].map(async ([how = '']) => {
        const flags = ['--no-warnings', ...(how.startsWith('--') ? [how] : []), '--input-type=module', '-e', program];
        const { stdout, stderr, code } = await run(process.execPath, [...flags, how], {
          cwd: root,
          env: { NODE_OPTIONS: undefined, TEST_INPUT: input },
        });
        assert.equal(code, 0, `${how}: ${stderr}`);
        return [how, JSON.parse(stdout)] as const;
      }),
    );
    const [[, expected] = assert.fail()] = results;
    assert.deepEqual(
      expected.slice(0, 6).map((line: string) => line.slice(0, 7)),
      ['200 ada', ...Array.from({ length: 3 }, () => '401 {"e'), '403 {"e', '401 {"e'],
    );
    for (const [how, told] of results) assert.deepEqual(told, expected, how);
  });
});

describe('the sandbox of a test runner', () => {
  const program = `
    import { readFileSync } from 'node:fs';
    import { createServer } from 'node:http';
    import { createContext, SourceTextModule, SyntheticModule } from 'node:vm';
    const never = () => {};
    const { AbortSignal, Buffer, performance, URL } = globalThis;
    const fake = Object.create(process, { nextTick: { value: never } });
    const globals = { AbortSignal, Buffer, performance, process: fake, setInterval: never, setTimeout: never, URL };
    const context = createContext(globals); // without TextDecoder, as with a DOM of its own
    const library = new SourceTextModule(readFileSync('dist/mcp-auth.js', 'utf8'), { context });
    await library.link(async (name) => {
      const real = await import(name);
      const names = Object.keys(real);
      return new SyntheticModule(names, function () {
        for (const name of names) this.setExport(name, real[name]);
      }, { context });
    });
    await library.evaluate();
    const { getUser, withAuth } = library.namespace;
    const { keys, token } = JSON.parse(process.env.TEST_INPUT);
    const server = createServer(withAuth((_req, res) => res.end(getUser().sub), { keys })).listen(0, '127.0.0.1');
    await new Promise((resolve) => server.on('listening', resolve));
    const url = 'http://127.0.0.1:' + server.address().port;
    const answer = await fetch(url, { headers: { authorization: 'Bearer ' + token } });
    console.log(answer.status, await answer.text());
    process.exit();`;
  it('with timers and ticks that never come, and without a global TextDecoder, holds up no request', async () => {
    const input = JSON.stringify({ keys: await serverKeys(), token: await mint({ sub: 'ada' }) });
    const { stdout, stderr } = await run(
      process.execPath,
      ['--no-warnings', '--experimental-vm-modules', '--input-type=module', '-e', program],
      { cwd: root, env: { NODE_OPTIONS: undefined, TEST_INPUT: input }, timeout: 20_000 },
    );
    assert.equal(stdout, '200 ada\n', stderr);
  });
});

describe('what a request inherits', () => {
  const paths: unknown[] = ['/open', '/.well-known/jwks.json', 7, null, {}, [], Symbol('x'), () => '/open', ''];
  const inherit = (req: IncomingMessage, members: PropertyDescriptorMap): void => {
    Object.setPrototypeOf(req, Object.create(Object.getPrototypeOf(req), members));
  };
  for (const adapter of ADAPTERS) {
    it(`is not its own: an inherited originalUrl is none, over ${adapter}`, async (t) => {
      let originalUrl: unknown;
      const guarded = wrap(adapter, (_req, res) => res.end('reached'), {
        keys: await serverKeys(),
        publicPaths: ['/open'],
      });
      const { port } = await serve(t, (req, res) => {
        inherit(req, { originalUrl: { value: originalUrl } });
        guarded(req, res);
      });
      const headers = await bearer({ sub: 'ada' });
      for (originalUrl of paths) {
        const what = String(originalUrl);
        assert.equal((await ask(port)).status, 401, what);
        assert.equal((await ask(port, { headers })).body, 'reached', what);
        assert.equal((await ask(port, { path: '/open' })).body, 'reached', what);
      }
    });

    it(`and an own originalUrl counts where it is a text, over ${adapter}`, async (t) => {
      let originalUrl: unknown;
      const guarded = wrap(adapter, (_req, res) => res.end('reached'), {
        keys: await serverKeys(),
        publicPaths: ['/open'],
      });
      const { port } = await serve(t, (req, res) => {
        Object.assign(req, { originalUrl });
        guarded(req, res);
      });
      for (originalUrl of paths) {
        const status = originalUrl === '/open' || originalUrl === '/.well-known/jwks.json' ? 200 : 401;
        assert.equal((await ask(port)).status, status, String(originalUrl));
      }
    });
  }

  it('is no field: authorization, origin and a session of a prototype are none', async (t) => {
    const good = (await bearer({ sub: 'ada' })).authorization;
    const { port } = await serve(
      t,
      ((guarded) => (req: IncomingMessage, res: ServerResponse) => {
        Object.setPrototypeOf(req.headers, {
          authorization: good,
          origin: 'https://evil.example',
          'mcp-session-id': 'a b',
        });
        guarded(req, res);
      })(withAuth((_req, res) => res.end(String(getUser().sub)), { keys: await serverKeys() })),
    );
    assert.equal((await ask(port)).status, 401);
    assert.equal((await ask(port, { headers: { authorization: good } })).body, 'ada');
  });
});

describe('an exception of our own', () => {
  const warnings: Error[] = [];
  const note = (warning: Error): void => void warnings.push(warning);
  process.on('warning', note);
  after(() => process.off('warning', note));
  const codeOf = (warning: Error): unknown => Reflect.get(warning, 'code');

  /** What a clock of the user's may do at run time. */
  const CLOCKS: Record<string, () => unknown> = {
    throws: () => {
      throw new Error('the clock');
    },
    'throws no error': () => {
      throw 'the clock';
    },
    'throws undefined': () => {
      throw undefined;
    },
    'throws a frozen error': () => {
      throw Object.freeze(new TypeError('the clock'));
    },
    'is NaN': () => Number.NaN,
    'is infinite': () => Infinity,
    'is a string': () => '1800000000',
    'is a promise': () => Promise.resolve(1_800_000_000),
    'is nothing': () => undefined,
    'is a date': () => new Date(),
    'is a bigint': () => 1_800_000_000n,
  };
  const asks: [name: string, headers: (token: string) => Record<string, string>, path?: string][] = [
    ['no token', () => ({})],
    ['a bad token', () => ({ authorization: 'Bearer x' })],
    ['a forged token', (token) => ({ authorization: `Bearer ${forge(token)}` })],
    ['a known token', (token) => ({ authorization: `Bearer ${token}` })],
    ['the key set', () => ({}), '/.well-known/jwks.json'],
  ];

  for (const [name, broken] of Object.entries(CLOCKS)) {
    it(`is 500, an event and a warning, and nothing else suffers: a clock that ${name}`, async (t) => {
      const token = await mint({ sub: 'ada' });
      const fresh = await mint({ sub: 'bob' });
      let clock: () => unknown = () => Date.now() / 1000;
      const events: AuthEvent[] = [];
      const options: AuthOptions = {
        keys: await serverKeys(),
        now: () => clock() as number,
        onEvent: (event) => void events.push(event),
      };
      const hosts: Record<string, (request: Ask) => Promise<{ status: number; body: string; challenge: unknown }>> = {};
      for (const adapter of ADAPTERS) {
        const { port } = await serve(
          t,
          wrap(adapter, (_req, res) => res.end(String(getUser().sub)), options),
        );
        hosts[adapter] = async (request) => {
          const { status, body, headers } = await ask(port, request);
          assert.equal(headers['cache-control'], status === 200 ? undefined : 'no-store');
          return { status, body, challenge: headers['www-authenticate'] };
        };
      }
      const answer = withAuthFetch(() => new Response(String(getUser().sub)), options);
      hosts['fetch'] = async ({ path = '/mcp', headers }) => {
        const response = await answer(
          new Request(`http://localhost${path}`, { headers: { ...headers } as HeadersInit }),
        );
        const challenge = response.headers.get('www-authenticate') ?? undefined;
        return { status: response.status, body: await response.text(), challenge };
      };
      for (const [host, send] of Object.entries(hosts)) {
        const known = { headers: { authorization: `Bearer ${token}` } };
        assert.deepEqual((await send(known)).body, 'ada', host);
        clock = broken;
        events.length = 0;
        for (const [what, headers, path] of [
          ...asks,
          ['a new token', () => ({ authorization: `Bearer ${fresh}` })] as const,
        ]) {
          const request = { headers: headers(token), ...(path !== undefined && { path }) };
          assert.deepEqual(await send(request), { ...failure, challenge: undefined }, `${host}: ${what}`);
        }
        clock = () => Date.now() / 1000;
        const told = events.map(({ type, reason, status }) => ({ type, reason, status }));
        assert.deepEqual(
          told,
          Array.from({ length: 6 }, () => ({ type: 'failed', reason: 'failed', status: 500 })),
          host,
        );
        assert.deepEqual((await send(known)).body, 'ada', host);
        assert.deepEqual((await send({ headers: { authorization: `Bearer ${fresh}` } })).body, 'bob', host);
      }
      await until(() => warnings.some((warning) => codeOf(warning) === 'MCP_AUTH_FAILED'));
    });
  }

  it('whenever it comes: never 401 for a good one nor the handler for another', async (t) => {
    let calls = 0;
    let broken = Infinity;
    const options: AuthOptions = {
      keys: await serverKeys(),
      now: () => {
        calls += 1;
        if (calls === broken) throw new Error('the clock, once');
        return Date.now() / 1000;
      },
    };
    let reached = 0;
    const listener = withAuth((_req, res) => void ((reached += 1), res.end()), options);
    const { port } = await serve(t, listener);
    const [good, forged] = [await mint({ sub: 'ada' }), forge(await mint({ sub: 'eve' }))];
    const seen = new Set<number>();
    for (let at = 1; at <= 12; at += 1) {
      for (const token of [good, await mint({ sub: 'new', at })]) {
        broken = calls + at;
        const { status } = await ask(port, { headers: { authorization: `Bearer ${token}` } });
        broken = Infinity;
        assert.ok(status === 200 || status === 500, `${status} at ${at}`);
        seen.add(status);
      }
      const before = reached;
      broken = calls + at;
      const { status } = await ask(port, { headers: { authorization: `Bearer ${forged}` } });
      broken = Infinity;
      assert.ok(status === 401 || status === 500, `${status} at ${at}`);
      assert.equal(reached, before);
    }
    assert.deepEqual([...seen].sort(), [200, 500], 'both happened');
  });

  it('shows nothing of what it was thrown over', async (t) => {
    const token = await mint({ sub: 'ada', secret: 'claim value' });
    let clock = (): number => Date.now() / 1000;
    const events: AuthEvent[] = [];
    const onEvent = (event: AuthEvent): void => void events.push(event);
    const { port } = await guard(t, { now: () => clock(), onEvent });
    warnings.length = 0;
    for (const thrown of [
      new RangeError(`of Bearer ${token}`),
      new Error(`of\n    at Bearer ${token}`),
      Object.assign(new Error('of a name'), { name: `Bearer ${token}` }),
      Object.assign(new Error('of a member'), { token, cause: token }),
      `Bearer ${token}`,
      { name: token, message: token, stack: `Error\n    at ${token}` },
    ]) {
      clock = () => {
        throw thrown;
      };
      const answer = await ask(port, { headers: { authorization: `Bearer ${token}` } });
      assert.deepEqual([answer.status, answer.body], [failure.status, failure.body]);
      await delay(5);
      const told = JSON.stringify([answer, events, warnings.map((warning) => [warning.message, warning.stack])]);
      for (const part of [token, token.slice(0, 40), 'claim value']) assert.ok(!told.includes(part), String(thrown));
    }
  });

  for (const [name, spoil] of Object.entries<(req: IncomingMessage, res: ServerResponse) => void>({
    'headers that cannot be read': (req) =>
      void Object.defineProperty(req, 'headers', {
        get(): never {
          throw new Error('no headers');
        },
      }),
    'a field that cannot be read': (req) =>
      void Object.defineProperty(req.headers, 'authorization', {
        get(): never {
          throw new Error('no field');
        },
      }),
    'a field that is no text': (req) => void Object.assign(req.headers, { authorization: Object.create(null) }),
    'an originalUrl that cannot be read': (req) =>
      void Object.defineProperty(req, 'originalUrl', {
        get(): never {
          throw new Error('no url');
        },
      }),
    'an answer whose fields cannot be set': (_req, res) => {
      res.setHeader = (): never => {
        throw new Error('no setHeader');
      };
    },
    'a request whose auth cannot be set': (req) => void Object.defineProperty(req, 'auth', { get: () => undefined }),
  })) {
    for (const adapter of ADAPTERS) {
      it(`over ${adapter} reaches no handler and ends no process: ${name}`, async (t) => {
        let spoiled = true;
        let reached = 0;
        const given: unknown[] = [];
        const events: AuthEvent[] = [];
        const onEvent = (event: AuthEvent): void => void events.push(event);
        const options: AuthOptions = { keys: await serverKeys(), cors: { origin: '*' }, onEvent };
        const handler: NodeListener = (_req, res) => void ((reached += 1), res.end('reached'));
        const middleware = authMiddleware(options);
        const next =
          (req: IncomingMessage, res: ServerResponse) =>
          (error?: unknown): void => {
            if (error === undefined) return void handler(req, res);
            given.push(error);
            res.statusCode = 500;
            res.end();
          };
        const guarded =
          adapter === 'withAuth'
            ? withAuth(handler, options)
            : (req: IncomingMessage, res: ServerResponse): void => middleware(req, res, next(req, res));
        const { port } = await serve(t, (req, res) => {
          if (spoiled) spoil(req, res);
          guarded(req, res);
        });
        const headers = await bearer({ sub: 'ada' });
        const { status } = await ask(port, { headers });
        assert.equal(status, 500);
        assert.equal(reached, 0);
        if (adapter === 'withAuth') assert.deepEqual(given, []);
        assert.ok(given.length === 1 || events.some(({ type }) => type === 'failed'), JSON.stringify(events));
        spoiled = false;
        assert.equal((await ask(port, { headers })).body, 'reached');
      });
    }
  }

  const token = async (): Promise<HeadersInit> => (await bearer({ sub: 'ada' })) as HeadersInit;
  const STRANGE: Record<string, () => Promise<Request> | Request> = {
    'that nothing can be added to': async () =>
      Object.preventExtensions(new Request('http://localhost/mcp', { headers: await token() })),
    'without an absolute URL': async () =>
      ({ method: 'GET', url: '/mcp', headers: new Headers(await token()) }) as unknown as Request,
    'without header fields': () => ({ method: 'GET', url: 'http://localhost/mcp' }) as unknown as Request,
  };
  for (const [name, make] of Object.entries(STRANGE)) {
    it(`is 500 and an event, and no handler is reached, for a fetch request ${name}`, async () => {
      const events: AuthEvent[] = [];
      let reached = 0;
      const handler = (): Response => new Response(String((reached += 1)));
      const onEvent = (event: AuthEvent): void => void events.push(event);
      const answer = await withAuthFetch(handler, { keys: await serverKeys(), onEvent })(await make());
      assert.deepEqual({ status: answer.status, body: await answer.text() }, failure);
      assert.deepEqual([reached, events.filter(({ type }) => type === 'failed').length], [0, 1]);
    });
  }

  it('of a clock is a rejection of the verifier, too, and no verdict on the token', async () => {
    let clock: () => number = () => Date.now() / 1000;
    const verifier = new JWETokenVerifier({ keys: await serverKeys(), now: () => clock() });
    const token = await encryptToken({ sub: 'ada' }, (await keyPair()).publicJwk);
    clock = () => Number.NaN;
    for (const one of [token, 'x'])
      await assert.rejects(verifier.verifyToken(one), { name: 'KeyError', code: 'option' });
    clock = () => Date.now() / 1000;
    assert.equal((await verifier.verifyToken(token)).sub, 'ada');
  });
});
