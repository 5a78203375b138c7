// Whose request it is: in the handler, in everything it starts, and never in anyone else's.
import assert from 'node:assert/strict';
import { AsyncLocalStorage, AsyncResource } from 'node:async_hooks';
import { EventEmitter, once } from 'node:events';
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { Agent, type IncomingMessage, request, type RequestListener, type ServerResponse } from 'node:http';
import { connect as connectHttp2, createServer as createHttp2 } from 'node:http2';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Transform } from 'node:stream';
import { text } from 'node:stream/consumers';
import { finished, pipeline } from 'node:stream/promises';
import { describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import type { AuthInfo as AuthInfoV1 } from '@modelcontextprotocol/sdk/server/auth/types.js';
import type { AuthInfo as AuthInfoV2 } from '@modelcontextprotocol/server';
import {
  type AuthenticatedRequest,
  AuthError,
  type AuthInfo,
  authMiddleware,
  type AuthOptions,
  type AuthUser,
  compactEncrypt,
  getAuth,
  getAuthInfo,
  getUser,
  JWETokenVerifier,
  KeyError,
  runAs,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';
import { hold } from './support/rsa.js';
import { keyPair, root, run, type Scope, serve } from './support/support.js';
import { untyped } from './support/tokens.js';
import { asHttp2, ask, bearer, exchange, guard, mint, serverKeys } from './support/wire.js';

type Note = () => void;
type Place = (req: IncomingMessage, res: ServerResponse, note: Note) => unknown;

/** Where code of a handler runs. Every place ends the answer and notes who the user is there. */
const places: Record<string, Place> = {
  'the handler itself': (_req, res, note) => {
    note();
    res.end();
  },
  'after an await': async (_req, res, note) => {
    await null;
    note();
    await delay(1);
    note();
    res.end();
  },
  'a timer': (_req, res, note) => {
    setTimeout(() => {
      note();
      res.end();
    }, 1);
  },
  'an immediate, a tick and a microtask': (_req, res, note) => {
    setImmediate(() => {
      note();
      process.nextTick(() => {
        note();
        queueMicrotask(() => {
          note();
          res.end();
        });
      });
    });
  },
  'req data, end and close': (req, res, note) => {
    req
      .on('data', note)
      .on('end', () => {
        note();
        res.end();
      })
      .on('close', note);
  },
  'req data, the listener added later': (req, res, note) => {
    setTimeout(() => req.on('data', note).on('end', () => res.end()), 5);
  },
  'req readable': (req, res, note) => {
    req
      .on('readable', () => {
        note();
        while (req.read() !== null);
      })
      .on('end', () => res.end());
  },
  'req end, once, prepended and added': (req, res, note) => {
    req
      .once('end', note)
      .prependListener('end', note)
      .addListener('end', () => res.end())
      .resume();
  },
  'a timer and an await started in req end': (req, res, note) => {
    req
      .on('end', () =>
        setTimeout(async () => {
          note();
          await delay(1);
          note();
          res.end();
        }, 1),
      )
      .resume();
  },
  'res finish and close': (req, res, note) => {
    res.on('finish', note).on('close', note);
    req.on('end', () => res.end()).resume();
  },
  'a timer started in res close': (req, res, note) => {
    res.on('close', () => setTimeout(note, 1));
    req.on('end', () => res.end()).resume();
  },
  'the callbacks of res.write and res.end': (req, res, note) => {
    req
      .on('end', () =>
        res.write('x', () => {
          note();
          res.end(note);
        }),
      )
      .resume();
  },
  'res drain': (_req, res, note) => {
    res.on('drain', () => {
      note();
      res.end();
    });
    while (res.write('x'.repeat(65_536)));
  },
  'res timeout': (_req, res, note) => {
    res.setTimeout(5, () => {
      note();
      res.end();
    });
  },
  'req error': (req, res, note) => {
    req
      .on('error', () => {
        note();
        res.end();
      })
      .destroy(new Error('of the handler'));
  },
  'for await over req': async (req, res, note) => {
    for await (const _chunk of req) note();
    note();
    res.end();
  },
  'req.toArray and consumers': async (req, res, note) => {
    await text(req);
    note();
    res.end();
  },
  'pipe into a transform': (req, res, note) => {
    req
      .pipe(
        new Transform({
          transform(chunk, _encoding, done) {
            note();
            done(null, chunk);
          },
          flush(done) {
            note();
            done();
          },
        }),
      )
      .pipe(res);
  },
  'pipeline to res': async (req, res, note) => {
    await pipeline(
      req,
      async function* (source) {
        for await (const chunk of source) {
          note();
          yield chunk;
        }
      },
      res,
    );
    note();
  },
  'finished and once': async (req, res, note) => {
    req.resume();
    await Promise.all([finished(req), once(req, 'end')]);
    note();
    res.end();
  },
  'an AsyncResource of the handler': (req, res, note) => {
    const resource = new AsyncResource('test');
    req
      .on('end', () =>
        resource.runInAsyncScope(() => {
          note();
          res.end();
        }),
      )
      .resume();
  },
  'a bound function called by others': (_req, res, note) => {
    elsewhere.once(
      'call',
      AsyncResource.bind(() => {
        note();
        res.end();
      }),
    );
    setTimeout(() => outside.runInAsyncScope(() => elsewhere.emit('call')), 1);
  },
};
const elsewhere = new EventEmitter();
const outside = new AsyncResource('outside');

describe('the user of a request is known in', () => {
  for (const [name, place] of Object.entries(places)) {
    it(name, async (t) => {
      const notes: unknown[] = [];
      let reached: (() => void) | undefined;
      const { port } = await guard(t, {}, (req, res) => {
        void place(req, res, () => {
          notes.push(getUser().sub);
        });
        reached?.();
      });
      const agent = new Agent({ keepAlive: true, maxSockets: 1 });
      t.after(() => agent.destroy());
      const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
      // Each token once while it has to be decrypted and once when it is known; all over one socket.
      for (const [sub, headers] of [
        ['ada', ada],
        ['bob', bob],
        ['ada', ada],
        ['bob', bob],
      ] as const) {
        const inHandler = new Promise<void>((resolve) => {
          reached = resolve;
        });
        const req = request({
          port,
          host: '127.0.0.1',
          method: 'POST',
          headers: { ...headers, 'transfer-encoding': 'chunked' },
          agent,
        });
        req.on('error', () => {}); // the handler may hang up on it
        const answered = once(req, 'response')
          .then(async ([res]) => text(res))
          .catch(() => {});
        req.write('before the handler');
        await inHandler;
        await delay(2);
        req.write('after it');
        await delay(2);
        req.end('last');
        await answered;
        for (let waited = 0; notes.length === 0 && waited < 1000; waited += 5) await delay(5);
        await delay(10);
        assert(notes.length > 0);
        assert.deepEqual(
          notes,
          notes.map(() => sub),
        );
        notes.length = 0;
      }
    });
  }

  it('req and res close after the client is gone', async (t) => {
    const notes: unknown[] = [];
    const { port } = await guard(t, {}, (req, res) => {
      req.on('close', () => notes.push(getUser().sub)).on('error', () => notes.push(getUser().sub));
      res.on('close', () => notes.push(getUser().sub));
      elsewhere.emit('reached');
    });
    const req = request({
      port,
      host: '127.0.0.1',
      method: 'POST',
      headers: await bearer({ sub: 'ada' }),
      agent: false,
    });
    req.on('error', () => {});
    const reached = once(elsewhere, 'reached');
    req.write('x');
    await reached;
    req.destroy();
    for (let waited = 0; notes.length < 3 && waited < 2000; waited += 5) await delay(5);
    assert.deepEqual(notes, ['ada', 'ada', 'ada']);
  });

  it('a handler of fetch, and what it starts', async () => {
    const handler = withAuthFetch(
      async (req) => {
        const before = getUser().sub;
        const body = await req.text();
        await delay(1);
        const stream = new ReadableStream({
          start: async (controller) => {
            await delay(1);
            controller.enqueue(Buffer.from(String(getUser().sub)));
            controller.close();
          },
        });
        return new Response(await text(stream), { headers: { seen: [before, body, getUser().sub].join() } });
      },
      { keys: await serverKeys() },
    );
    const answers = await Promise.all(
      ['ada', 'bob', 'ada', 'bob'].map(async (sub) =>
        handler(new Request('http://a/mcp', { method: 'POST', body: 'x', headers: await bearer({ sub }) })),
      ),
    );
    assert.deepEqual(
      await Promise.all(answers.map(async (answer) => [answer.headers.get('seen'), await answer.text()])),
      ['ada', 'bob', 'ada', 'bob'].map((sub) => [`${sub},x,${sub}`, sub]),
    );
  });

  it('its own AsyncLocalStorage as well as ours, although requests share a decryption', async (t) => {
    const traces = new AsyncLocalStorage<string>();
    const listener = withAuth(
      async (req, res) => {
        const here = traces.getStore();
        await text(req);
        res.end(`${here} ${traces.getStore()} ${getUser().sub}`);
      },
      { keys: await serverKeys() },
    );
    const { port } = await serve(t, (req, res) =>
      traces.run(String(req.headers['x-trace']), () => void listener(req, res)),
    );
    const headers = await bearer({ sub: 'ada' });
    const ids = Array.from({ length: 20 }, (_, index) => String(index));
    const answers = await Promise.all(
      ids.map((id) => ask(port, { method: 'POST', body: 'x', headers: { ...headers, 'x-trace': id } })),
    );
    assert.deepEqual(
      answers.map(({ body }) => body),
      ids.map((id) => `${id} ${id} ada`),
    );
  });
});

describe('no user is taken for another', () => {
  /** Looks who it is at many moments, with pauses of random length between them. */
  const busy: RequestListener = async (req, res) => {
    const seen: unknown[] = [getUser().sub ?? 'nobody'];
    const look = (): void => {
      seen.push(getUser().sub ?? 'nobody');
    };
    const pause = (): Promise<void> => delay(Math.random() * 8);
    const read = once(req.on('data', look).on('end', look), 'end');
    await pause();
    look();
    await read;
    setTimeout(look, 0);
    await pause();
    look();
    res.end(JSON.stringify([...new Set(seen)]));
  };

  for (const [name, make] of Object.entries({
    withAuth: async (): Promise<RequestListener> => withAuth(busy, { keys: await serverKeys(), anonymous: true }),
    authMiddleware: async (): Promise<RequestListener> => {
      const middleware = authMiddleware({ keys: await serverKeys(), anonymous: true });
      return (req, res) => middleware(req, res, () => void busy(req, res));
    },
  })) {
    it(`among 400 simultaneous requests of 20 users and of nobody, over ${name}`, async (t) => {
      const { port } = await serve(t, await make());
      const agent = new Agent({ keepAlive: true, maxSockets: 25 });
      t.after(() => agent.destroy());
      const users = await Promise.all(
        Array.from(
          { length: 20 },
          async (_, index) => [`user ${index}`, await bearer({ sub: `user ${index}` })] as const,
        ),
      );
      const all = [...users, ['nobody', {}] as const];
      const asked = Array.from({ length: 400 }, (_, index) => all[(index * 8) % 21] ?? assert.fail());
      const answers = await Promise.all(
        asked.map(([, headers]) => ask(port, { method: 'POST', body: 'x', headers: { ...headers }, agent })),
      );
      assert.deepEqual(
        answers.map(({ body }) => JSON.parse(body)),
        asked.map(([sub]) => [sub]),
      );
    });
  }

  it('among pipelined requests on one socket, anonymous, public, refused and authenticated', async (t) => {
    const { server, port } = await guard(t, { anonymous: true, publicPaths: ['/open'] }, async (req, res) => {
      const seen = [getUser().sub, getAuth()?.user.sub];
      req.on('end', () => seen.push(getUser().sub));
      await text(req);
      setTimeout(() => {
        seen.push(getUser().sub);
        res.end(JSON.stringify([...new Set(seen)]));
      }, 1);
    });
    const bare: unknown[] = [];
    server.prependListener('request', () => bare.push(getUser().sub, getAuth())); // unwrapped, on the same sockets
    server.on('connection', (socket) =>
      socket.on('data', () => bare.push(getUser().sub)).on('close', () => bare.push(getUser().sub)),
    );
    const [ada, bob] = [await mint({ sub: 'ada' }), await mint({ sub: 'bob' })];
    const rows: [path: string, token: string | undefined, body: unknown][] = [
      ['/', ada, ['ada']],
      ['/', undefined, [null]],
      ['/', bob, ['bob']],
      ['/open', ada, [null]],
      ['/', ada, ['ada']],
      ['/', 'x', undefined],
      ['/', undefined, [null]],
      ['/', bob, ['bob']],
      ['/', undefined, [null]],
    ];
    const octets = rows
      .map(([path, token], index) =>
        [
          `POST ${path} HTTP/1.1`,
          'Host: localhost',
          'Content-Length: 4',
          ...(token ? [`Authorization: Bearer ${token}`] : []),
          ...(index === rows.length - 1 ? ['Connection: close'] : []),
          '',
          'body',
        ].join('\r\n'),
      )
      .join('');
    const answers = (await exchange(port, octets)).split(/(?=HTTP\/1\.1 )/);
    assert.deepEqual(
      answers.map((answer) =>
        answer.startsWith('HTTP/1.1 200') ? JSON.parse(/\[.*\]/.exec(answer)?.[0] ?? '') : undefined,
      ),
      rows.map(([, , body]) => body),
    );
    assert(bare.length > rows.length && bare.every((value) => value === undefined), JSON.stringify(bare));
  });

  it('when an anonymous handler is called from inside a user’s context', async (t) => {
    const options: AuthOptions = { keys: await serverKeys() };
    const seen: unknown[] = [];
    const inner = withAuth(
      (_req, res) => {
        seen.push(getUser().sub, getAuth(), getAuthInfo());
        res.end();
      },
      { ...options, anonymous: true, tokenHeader: 'x-inner' },
    );
    const { port } = await guard(t, options, (req, res) => {
      void inner(req, res);
      seen.push(getUser().sub);
    });
    await ask(port, { headers: await bearer({ sub: 'ada' }) });
    assert.deepEqual(seen, [undefined, undefined, undefined, 'ada']);
  });
});

describe('getUser, getAuth and getAuthInfo', () => {
  it('know nobody outside a request', () => {
    const user = getUser();
    assert.equal(Object.getPrototypeOf(user), null);
    assert(Object.isFrozen(user));
    assert.deepEqual(Object.keys(user), []);
    assert.equal(user.constructor, undefined);
    assert.equal(getAuth(), undefined);
    assert.equal(getAuthInfo(), undefined);
  });

  it('know nobody in an anonymous request, which gets no req.auth', async (t) => {
    const { port } = await guard(t, { anonymous: true, publicPaths: ['/open'] }, (req, res) => {
      res.end(
        JSON.stringify([
          Object.keys(getUser()),
          Object.isFrozen(getUser()),
          String(getAuth()),
          String(getAuthInfo()),
          'auth' in req,
        ]),
      );
    });
    for (const request of [{}, { path: '/open', headers: await bearer({ sub: 'ada' }) }]) {
      assert.equal((await ask(port, request)).body, '[[],true,"undefined","undefined",false]');
    }
  });

  /** What one request saw. */
  async function see<T>(
    t: Parameters<typeof guard>[0],
    token: string,
    options: AuthOptions,
    look: (req: IncomingMessage & { auth?: AuthInfo }) => T,
  ): Promise<T> {
    let seen: { value: T } | undefined;
    const { port } = await guard(t, options, (req, res) => {
      seen = { value: look(req) };
      res.end();
    });
    assert.equal((await ask(port, { headers: { authorization: `Bearer ${token}` } })).status, 200);
    assert(seen);
    return seen.value;
  }

  it('give claims that are frozen to the bottom and have no prototype', async (t) => {
    const token = await mint({ sub: 'ada', org: { roles: [{ name: 'admin' }] } });
    const user = await see(t, token, {}, () => getUser<{ org: { roles: { name: string }[] } }>());
    assert.deepEqual(JSON.parse(JSON.stringify(user.org)), { roles: [{ name: 'admin' }] });
    for (const object of [user, user.org, user.org.roles[0]]) assert.equal(Object.getPrototypeOf(object), null);
    for (const object of [user, user.org, user.org.roles, user.org.roles[0]]) assert(Object.isFrozen(object));
    assert.throws(() => {
      user.org.roles.push({ name: 'x' });
    }, TypeError);
    assert.equal(user['toString'], undefined);
  });

  it('say what is known beside the claims', async (t) => {
    const token = await mint({ sub: 'ada', scope: 'read  write', iat: 1_700_000_000, exp: 4_000_000_000 });
    const auth = await see(t, token, {}, getAuth);
    assert(auth && Object.isFrozen(auth) && Object.isFrozen(auth.scopes));
    const { user, ...rest } = auth;
    assert.deepEqual(rest, {
      token,
      signed: false,
      keyId: (await keyPair()).publicJwk.kid,
      scopes: ['read', 'write'],
      expiresAt: 4_000_000_000,
    });
    assert.deepEqual({ ...user }, { sub: 'ada', scope: 'read  write', iat: 1_700_000_000, exp: 4_000_000_000 });
  });

  it('give the MCP SDKs what they take as req.auth', async (t) => {
    const token = await mint({ sub: 'ada', client_id: 'app', scope: 'read', exp: 4_000_000_000 });
    const [onRequest, asked] = await see(t, token, { resource: 'https://mcp.example/mcp' }, (req) => [
      req.auth,
      getAuthInfo(),
    ]);
    assert(onRequest && asked);
    const [v1, v2]: [AuthInfoV1, AuthInfoV2] = [onRequest, onRequest]; // the types of both hold
    assert.equal(v1, v2);
    assert.deepEqual(onRequest, asked);
    const { extra, ...rest } = asked;
    assert.deepEqual(rest, {
      token,
      clientId: 'app',
      scopes: ['read'],
      expiresAt: 4_000_000_000,
      resource: new URL('https://mcp.example/mcp'),
      resourceMetadataUrl: 'https://mcp.example/.well-known/oauth-protected-resource/mcp',
    });
    assert.equal(extra['sub'], 'ada');
    const without = await see(t, await mint({ sub: 'ada' }, { expiresIn: null }), {}, getAuthInfo);
    assert.deepEqual(Object.keys(without ?? {}), ['token', 'clientId', 'scopes', 'extra']);
  });

  it('give a new AuthInfo at every call: changing one changes nothing', async (t) => {
    const token = await mint({ sub: 'ada', scope: 'read' });
    const options = { resource: 'https://mcp.example/mcp' };
    const again = await see(t, token, options, (req) => {
      for (const info of [req.auth, getAuthInfo()]) {
        assert(info);
        info.scopes.push('admin');
        info.clientId = 'root';
        info.resource?.searchParams.set('x', 'y');
        assert.throws(() => {
          info.extra['sub'] = 'root';
        }, TypeError);
        info.extra = { sub: 'root' };
      }
      assert.notEqual(getAuthInfo(), getAuthInfo());
      return { info: getAuthInfo(), user: getUser(), scopes: getAuth()?.scopes };
    });
    assert.deepEqual({ ...again.user }['sub'], 'ada');
    assert.deepEqual(again.scopes, ['read']);
    assert.deepEqual(
      [again.info?.scopes, again.info?.clientId, again.info?.resource?.href, again.info?.extra['sub']],
      [['read'], 'ada', 'https://mcp.example/mcp', 'ada'],
    );
  });

  it('take the client from client_id, azp or sub, in this order', async (t) => {
    const rows: [claims: object, clientId: string][] = [
      [{ client_id: 'c', azp: 'a', sub: 's' }, 'c'],
      [{ azp: 'a', sub: 's' }, 'a'],
      [{ sub: 's' }, 's'],
      [{}, ''],
      [{ client_id: 7, azp: null, sub: 's' }, 's'],
      [{ client_id: ['c'] }, ''],
    ];
    for (const [claims, clientId] of rows) {
      assert.equal((await see(t, await mint(claims), {}, getAuthInfo))?.clientId, clientId, JSON.stringify(claims));
    }
  });

  it('take scopes from scope or scp', async (t) => {
    const rows: [claims: object, scopes: string[]][] = [
      [{ scope: 'a b' }, ['a', 'b']],
      [{ scope: '' }, []],
      [{ scope: ' a ' }, ['a']],
      [{ scp: 'a b' }, ['a', 'b']],
      [{ scp: ['a', 'b'] }, ['a', 'b']],
      [{ scp: ['a', 7, '', null] }, ['a']],
      [{ scope: 'a', scp: ['b'] }, ['a']],
      [{ scope: 7, scp: ['b'] }, ['b']],
      [{ scope: { a: 1 } }, []],
      [{}, []],
    ];
    for (const [claims, scopes] of rows)
      assert.deepEqual((await see(t, await mint(claims), {}, getAuthInfo))?.scopes, scopes, JSON.stringify(claims));
  });
});

describe('what a handler throws', () => {
  // The same handler bare, and behind the wrapper: without a token (at once), with a known token (at once) and with a
  // new one (after its decryption).
  const script = `
    import { createServer, request } from 'node:http';
    import { authMiddleware, withAuth } from 'mcp-auth-middleware';
    const [how, what, listen] = process.argv.slice(1);
    const boom = new Error('boom');
    const handler = {
      throws() { throw boom; },
      async rejects() { throw boom; },
      async rejectsLater() { await null; throw boom; },
      inTimer() { setTimeout(() => { throw boom; }, 1); },
      inEnd(req) { req.on('end', () => { throw boom; }).resume(); },
      inFinish(req, res) { res.on('finish', () => { throw boom; }).end(); },
    }[what];
    if (listen) {
      for (const name of ['uncaughtException', 'unhandledRejection']) {
        process.on(name, (error) => { console.log(name, error === boom, error.message); process.exit(7); });
      }
    }
    const options = { keys: JSON.parse(process.env.TEST_KEYS), anonymous: true };
    let warm = true; // the handler's first run only makes the token known
    const once = (...args) => (how === 'known' && warm ? (warm = false, args[1].end()) : handler(...args));
    const middleware = authMiddleware(options);
    const listener = {
      bare: handler,
      none: withAuth(handler, options),
      known: withAuth(once, options),
      new: withAuth(handler, options),
      middleware: (req, res) => middleware(req, res, () => handler(req, res)),
    }[how];
    const headers = ['bare', 'none'].includes(how) ? {} : { authorization: process.env.TEST_BEARER };
    const server = createServer(listener).listen(0, '127.0.0.1', () => {
      const target = { host: '127.0.0.1', port: server.address().port, method: 'POST', headers };
      const ask = (then) =>
        request(target, (res) => res.resume().on('end', then)).on('error', () => {}).end('body');
      ask(how === 'known' ? () => ask(() => {}) : () => {});
    });
    setTimeout(() => process.exit(9), 10_000).unref();`;
  async function throwing(how: string, what: string, listen: string): ReturnType<typeof run> {
    const env = {
      NODE_OPTIONS: undefined,
      TEST_KEYS: JSON.stringify(await serverKeys()),
      TEST_BEARER: (await bearer({ sub: '1' })).authorization,
    };
    return run(process.execPath, ['--no-warnings', '--input-type=module', '-e', script, how, what, listen], {
      cwd: root,
      env,
    });
  }

  for (const what of ['throws', 'rejects', 'rejectsLater', 'inTimer', 'inEnd', 'inFinish']) {
    it(`reaches the process as without the wrapper: ${what}`, async () => {
      const [bare, ...wrapped] = await Promise.all(
        ['bare', 'none', 'known', 'new', ...(what === 'throws' ? ['middleware'] : [])].map((how) =>
          throwing(how, what, 'listen'),
        ),
      );
      assert(bare);
      assert.equal(
        bare.stdout,
        `${what.startsWith('rejects') ? 'unhandledRejection' : 'uncaughtException'} true boom\n`,
        bare.stderr,
      );
      for (const one of wrapped) assert.deepEqual(one, bare);
    });
  }

  it('ends the process as without the wrapper, when nobody listens for it', async () => {
    for (const what of ['throws', 'rejects']) {
      for (const how of ['bare', 'new']) {
        const { code, stderr, stdout } = await throwing(how, what, '');
        assert.equal(code, 1, how);
        assert.equal(stdout, '');
        assert.match(stderr, /Error: boom\n/);
      }
    }
  });

  it('and what it returns goes to the caller, with its this', async (t) => {
    const seen: unknown[] = [];
    const listener: (this: unknown, ...args: Parameters<RequestListener>) => unknown = withAuth(
      function (this: unknown, _req, res) {
        seen.push(this);
        res.end();
        return 'returned' as unknown as void;
      },
      { keys: await serverKeys(), anonymous: true },
    );
    const receiver = {};
    const { port } = await serve(t, (req, res) => {
      seen.push(listener.call(receiver, req, res));
    });
    await ask(port);
    assert.deepEqual(seen, [receiver, 'returned']);
  });
});

describe('authMiddleware', () => {
  it('calls next without an error, once, and never for whom it refuses', async (t) => {
    const given: unknown[][] = [];
    const middleware = authMiddleware({ keys: await serverKeys() });
    const { port } = await serve(t, (req, res) =>
      middleware(req, res, (...args) => {
        given.push(args);
        res.end();
      }),
    );
    for (const headers of [{}, { authorization: 'Bearer x' }, await bearer({ sub: 'ada' })])
      await ask(port, { headers });
    assert.deepEqual(given, [[]]);
  });
});

describe('middlewares inside one another', () => {
  it('find the user also where the inner one is given an object that inherits from the request', async (t) => {
    const seen: unknown[] = [];
    const options = { keys: await serverKeys() };
    const inner = withAuth((req, res) => {
      req.on('end', () => res.end(String(getUser().sub)));
      seen.push(getUser(req).sub, req.setTimeout(1000, () => {}) === req, req.emit('nobody hears this'));
      req.resume();
    }, options);
    const { port } = await guard(t, options, (req, res) => inner(Object.create(req), res));
    const headers = await bearer({ sub: 'ada' });
    for (const _ of ['new', 'known']) assert.equal((await ask(port, { headers })).body, 'ada');
    assert.deepEqual(seen, ['ada', true, false, 'ada', true, false]);
  });

  it('have the inner one’s user in the handler and in its events', async (t) => {
    const keys = await serverKeys();
    const outer = authMiddleware({ keys, anonymous: true });
    const inner = authMiddleware({ keys, tokenHeader: 'x-inner' });
    const seen: unknown[] = [];
    const { port } = await serve(t, (req, res) =>
      outer(req, res, () =>
        inner(req, res, () => {
          seen.push(getUser().sub);
          req
            .on('end', () => {
              seen.push(getUser().sub);
              res.end();
            })
            .resume();
          res.on('finish', () => seen.push(getUser().sub));
        }),
      ),
    );
    for (const outside of [{}, await bearer({ sub: 'outer' })]) {
      await ask(port, {
        method: 'POST',
        body: 'x',
        headers: { ...outside, 'x-inner': `Bearer ${await mint({ sub: 'inner' })}` },
      });
    }
    assert.deepEqual(seen, Array(6).fill('inner'));
  });
});

it('an emit that something else put on the request before is still what emits', async (t) => {
  const options = { keys: await serverKeys() };
  const middleware = authMiddleware(options);
  const [emitted, seen]: [unknown[], unknown[]] = [[], []];
  const { port } = await serve(t, (req, res) => {
    const { emit } = req;
    req.emit = (...args: [name: string, ...unknown[]]): boolean => {
      emitted.push(args[0]);
      return Reflect.apply(emit, req, args);
    };
    middleware(req, res, () => {
      req.emit('unheard');
      req
        .on('end', () => {
          seen.push(getUser().sub);
          res.end();
        })
        .resume();
    });
  });
  await ask(port, { method: 'POST', body: 'x', headers: await bearer({ sub: 'ada' }) });
  assert.deepEqual(seen, ['ada']);
  assert.ok(emitted.includes('end'));
  assert.ok(emitted.includes('unheard'), 'what nobody listens to reaches it, too');
});

const EMIT =
  'emit answers as without the middleware: whether somebody listened, and an error that nobody listens for is thrown';
it(EMIT, async (t) => {
  const emitted = async (wrap: (handler: RequestListener) => RequestListener): Promise<unknown[]> => {
    const answers: unknown[] = [];
    const { port } = await serve(
      t,
      wrap((req, res) => {
        for (const emitter of [req, res]) {
          emitter.once('heard', (...args) => {
            answers.push(args);
          });
          answers.push(emitter.emit('heard', 1, 2, 3, 4), emitter.emit('heard'));
          assert.throws(() => emitter.emit('error', new Error('unheard')), /unheard/);
          emitter.once('error', (error) => {
            answers.push(error);
          });
          answers.push(emitter.emit('error', 'heard'));
        }
        res.end();
      }),
    );
    assert.equal((await ask(port, { headers: await bearer({ sub: 'ada' }) })).status, 200);
    return answers;
  };
  const options = { keys: await serverKeys() };
  const expected = await emitted((handler) => handler);
  assert.deepEqual(expected, [[1, 2, 3, 4], true, false, 'heard', true, [1, 2, 3, 4], true, false, 'heard', true]);
  assert.deepEqual(await emitted((handler) => withAuth(handler, options)), expected);
});

describe('a client that leaves while its token is verified', () => {
  /** An issuer that keeps everyone waiting for its keys until it is released. */
  async function slowIssuer(
    t: Parameters<typeof serve>[0],
  ): Promise<{ options: AuthOptions; asked: Promise<unknown>; release: () => void }> {
    const gate = new EventEmitter();
    const asked = once(gate, 'asked');
    const released = once(gate, 'released');
    const { url } = await serve(t, async (_req, res) => {
      gate.emit('asked');
      await released;
      res.end(
        JSON.stringify({
          keys: [{ kty: 'OKP', crv: 'Ed25519', x: Buffer.alloc(32, 1).toString('base64url'), kid: 'k' }],
        }),
      );
    });
    const options: AuthOptions = {
      keys: await serverKeys(),
      audience: 'a',
      trustedIssuers: [{ issuer: 'https://idp.example', jwks: new URL('/jwks', url) }],
    };
    return { options, asked, release: () => void gate.emit('released') };
  }
  const nested = async (): Promise<string> =>
    compactEncrypt(
      Buffer.from(`eyJhbGciOiJFZERTQSJ9.${Buffer.from('{"iss":"https://idp.example"}').toString('base64url')}.AAAA`),
      (await keyPair()).publicJwk,
      { cty: 'JWT' },
    );

  for (const name of ['withAuth', 'authMiddleware'] as const) {
    it(`gets no answer, and its place is cleared, over ${name}`, async (t) => {
      const { options, asked, release } = await slowIssuer(t);
      const events: string[] = [];
      let reached = 0;
      const handler: RequestListener = (_req, res) => {
        reached += 1;
        res.end();
      };
      const middleware = authMiddleware({
        ...options,
        onEvent: ({ type, reason }) => {
          events.push(`${type} ${reason}`);
        },
      });
      const { server, port } = await serve(
        t,
        name === 'withAuth'
          ? withAuth(handler, {
              ...options,
              onEvent: ({ type, reason }) => {
                events.push(`${type} ${reason}`);
              },
            })
          : (req, res) => middleware(req, res, () => handler(req, res)),
      );
      const req = request({
        host: '127.0.0.1',
        port,
        headers: { authorization: `Bearer ${await nested()}` },
        agent: false,
      });
      req.on('error', () => {}).end();
      const [, res] = await once(server, 'request');
      await asked;
      let written = 0;
      for (const method of ['writeHead', 'write', 'end'] as const)
        Object.assign(res, {
          [method]: () => {
            written += 1;
            return res;
          },
        });
      const closed = once(res, 'close');
      req.destroy();
      await closed;
      release();
      for (let waited = 0; !events.some((event) => event.startsWith('rejected')) && waited < 2000; waited += 5)
        await delay(5);
      await delay(20);
      assert(events.includes('rejected signature'), JSON.stringify(events));
      assert.deepEqual([reached, written], [0, 0]);
    });
  }
});

describe('the callbacks of an answer', () => {
  type Calls = (res: ServerResponse, note: (where: string) => () => void) => void;
  const CALLS: Record<string, Calls> = {
    'write(chunk, callback)': (res, note) => {
      res.write('a', note('write'));
      res.end();
    },
    'write(chunk, encoding, callback)': (res, note) => {
      res.write('61', 'hex', note('write'));
      res.end();
    },
    'end(callback)': (res, note) => void res.end(note('end')),
    'end(chunk, callback)': (res, note) => void res.end('a', note('end')),
    'end(chunk, encoding, callback)': (res, note) => void res.end('61', 'hex', note('end')),
    'through wrappers that pass on arguments which they did not get': (res, note) => {
      const { write, end } = res;
      const pass =
        (method: (...args: never[]) => unknown) =>
        (...[chunk, encoding, callback]: unknown[]) =>
          Reflect.apply(method, res, [chunk, encoding, callback]);
      Object.assign(res, { write: pass(write), end: pass(end) });
      res.write('a', note('write'));
      res.end('b', note('end'));
    },
    'writeEarlyHints(hints, callback)': (res, note) => {
      res.writeEarlyHints({ link: '</a>; rel=preload' }, note('writeEarlyHints'));
      res.end();
    },
    'writeContinue(callback)': (res, note) => {
      res.writeContinue(note('writeContinue'));
      res.end();
    },
    'writeProcessing(callback)': (res, note) => {
      Reflect.apply(res.writeProcessing, res, [note('writeProcessing')]);
      res.end();
    },
    'several at once, and the events': (res, note) => {
      res.on('finish', note('finish')).on('close', note('close'));
      res.write('a', note('first'));
      res.write('b', note('second'));
      res.end(note('end'));
    },
    'in one another': (res, note) => {
      res.write('a', () => {
        note('outer')();
        setTimeout(note('timer'), 1);
        res.end('b', note('inner'));
      });
    },
    'pipeline from a stream': (res, note) => {
      pipeline(Transform.from(['a', 'b']), res).then(note('pipeline'), note('failed'));
    },
  };
  for (const [name, call] of Object.entries(CALLS)) {
    it(`are its own request’s on a pipelined connection where another’s answer comes first: ${name}`, async (t) => {
      const notes: string[] = [];
      const { port } = await guard(t, { anonymous: true }, (_req, res) => {
        const me = getUser().sub ?? 'nobody';
        if (me === 'eve') return void setTimeout(() => res.end('slow'), 40);
        call(res, (where) => () => notes.push(`${where} of ${me} as ${getUser().sub ?? 'nobody'}`));
      });
      const [ada, eve, bob] = await Promise.all(['ada', 'eve', 'bob'].map((sub) => mint({ sub })));
      const head = (token: string | undefined, more = ''): string =>
        `GET / HTTP/1.1\r\nHost: localhost\r\n` +
        `${token === undefined ? '' : `Authorization: Bearer ${token}\r\n`}${more}\r\n`;
      // New tokens and known ones.
      for (let round = 0; round < 2; round += 1) {
        const octets = [eve, ada, undefined, eve, bob, undefined].map((token) => head(token)).join('');
        await exchange(port, octets + head(eve, 'Connection: close\r\n'));
      }
      await delay(20);
      const whose = notes.map((line) => /of (\w+) as (\w+)$/.exec(line)?.slice(1) ?? []);
      for (const [index, [owner, seen]] of whose.entries()) assert.equal(seen, owner, notes[index] ?? '');
      for (const who of ['ada', 'bob', 'nobody']) assert.ok(whose.filter(([owner]) => owner === who).length >= 2, who);
    });
  }

  it('are the inner one’s of nested middlewares', async (t) => {
    const keys = await serverKeys();
    const outer = authMiddleware({ keys });
    const inner = authMiddleware({ keys, tokenHeader: 'x-inner' });
    const notes: unknown[] = [];
    const note = (): void => void notes.push(getUser().sub);
    const { port } = await serve(t, (req, res) =>
      outer(req, res, () => {
        if (getUser().sub === 'eve') return void setTimeout(() => res.end('slow'), 40);
        res.writeEarlyHints({ link: '</a>; rel=preload' }, note); // on its way to the socket as the outer one's
        inner(req, res, () => {
          res.write('after', note);
          res.end(note);
        });
      }),
    );
    const [ada, eve, inside] = await Promise.all(['ada', 'eve', 'inner'].map((sub) => mint({ sub })));
    const head = (token = '', more = ''): string =>
      `GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\n${more}\r\n`;
    for (let round = 0; round < 2; round += 1) {
      notes.length = 0;
      await exchange(port, head(eve) + head(ada, `X-Inner: Bearer ${inside}\r\n`) + head(eve, 'Connection: close\r\n'));
      assert.deepEqual(notes, ['ada', 'inner', 'inner'].slice(0, notes.length));
      assert.equal(notes.length, 3);
    }
  });

  it('of setTimeout are its request’s', async (t) => {
    const notes: string[] = [];
    const { port } = await guard(t, {}, (_req, res) => {
      const me = String(getUser().sub);
      if (me === 'eve') return void setTimeout(() => res.end('slow'), 60);
      res.setTimeout(10, () => {
        notes.push(`res ${me} ${getUser().sub}`);
        if (!res.writableEnded) res.end();
      });
    });
    for (const sub of ['ada', 'bob']) assert.equal((await ask(port, { headers: await bearer({ sub }) })).status, 200);
    const [ada, eve] = [await mint({ sub: 'ada' }), await mint({ sub: 'eve' })];
    const head = (token: string, more = ''): string =>
      `GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\n${more}\r\n`;
    await exchange(port, head(eve) + head(ada, 'Connection: close\r\n'));
    assert.ok(notes.length >= 3, JSON.stringify(notes));
    for (const line of notes) assert.match(line, /^re[qs] (\w+) \1$/);
  });

  it('of setTimeout can be removed as without the wrapper', async (t) => {
    const options = { keys: await serverKeys() };
    for (const wrapped of [(handler: RequestListener) => handler, (handler) => withAuth(handler, options)] satisfies ((
      handler: RequestListener,
    ) => RequestListener)[]) {
      let gaveUp = 0;
      const giveUp = (): void => void (gaveUp += 1);
      const { port } = await serve(
        t,
        wrapped(async (_req, res) => {
          res.setTimeout(30, giveUp);
          const listeners = [res.listeners('timeout'), res.removeListener('timeout', giveUp).listenerCount('timeout')];
          res.on('timeout', () => {}); // or Node destroys the socket
          await delay(100);
          res.end(String(listeners[0] && [listeners[0]].flat()[0] === giveUp && listeners[1] === 0));
        }),
      );
      assert.equal((await ask(port, { headers: await bearer({ sub: 'ada' }) })).body, 'true');
      assert.equal(gaveUp, 0);
    }
  });

  it('return what they returned, and take what is no callback as before', async (t) => {
    const answers = async (wrapped: (handler: RequestListener) => RequestListener): Promise<unknown[]> => {
      const seen: unknown[] = [];
      const { port } = await serve(
        t,
        wrapped((_req, res) => {
          seen.push(res.write('a'), res.write('b', undefined), res.setTimeout(1000) === res);
          seen.push(res.end('c') === res, res.end(() => {}) === res);
        }),
      );
      seen.push((await ask(port, { headers: await bearer({ sub: 'ada' }) })).body);
      return seen;
    };
    const options = { keys: await serverKeys() };
    const plain = await answers((handler) => handler);
    assert.deepEqual(plain, [true, true, true, true, true, 'abc']);
    assert.deepEqual(await answers((handler) => withAuth(handler, options)), plain);
  });

  it('of HTTP/2 are its own request’s', async (t) => {
    const notes: string[] = [];
    const listener = withAuth(
      async (req, res) => {
        const me = String(getUser().sub);
        const note =
          (where: string): (() => void) =>
          () =>
            void notes.push(`${where} ${me} ${getUser().sub}`);
        req.on('end', note('end of the request')).on('close', note('close of the request')).resume();
        res.on('finish', note('finish')).on('close', note('close'));
        res.setTimeout(5, note('timeout'));
        await delay(10);
        res.write('a', note('write'));
        await delay(2);
        res.end('b', note('end'));
      },
      { keys: await serverKeys() },
    );
    const server = createHttp2(asHttp2(listener)).listen(0, '127.0.0.1');
    t.after(() => server.close());
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const session = connectHttp2(`http://127.0.0.1:${port}`);
    t.after(() => session.close());
    await Promise.all(
      ['ada', 'bob', 'eve', 'ada'].map(async (sub) => {
        const stream = session.request({ ':method': 'POST', ...(await bearer({ sub })) }).end('body');
        assert.equal(await text(stream), 'ab');
      }),
    );
    await delay(20);
    for (const where of ['write', 'end', 'finish', 'end of the request'])
      assert.equal(
        notes.filter((line) => line.startsWith(`${where} `) && line.split(' ').length === where.split(' ').length + 2)
          .length,
        4,
        where,
      );
    for (const line of notes) assert.match(line, / (\w+) \1$/);
  });

  it('of a push in HTTP/2 are its request’s', async (t) => {
    const notes: unknown[] = [];
    const listener = withAuth(
      (_req, res) => {
        const push: unknown = Reflect.get(res, 'createPushResponse');
        assert.ok(typeof push === 'function');
        const pushed = (_error: unknown, answer: ServerResponse | undefined): void => {
          notes.push(getUser().sub);
          answer?.end('pushed');
          res.end('pushing');
        };
        Reflect.apply(push, res, [{ ':path': '/pushed' }, pushed]);
      },
      { keys: await serverKeys() },
    );
    const server = createHttp2(asHttp2(listener)).listen(0, '127.0.0.1');
    t.after(() => server.close());
    await once(server, 'listening');
    const session = connectHttp2(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    t.after(() => session.close());
    session.on('stream', (stream) => void stream.resume());
    const users = ['ada', 'bob', 'ada'];
    for (const sub of users) assert.equal(await text(session.request(await bearer({ sub })).end()), 'pushing');
    assert.deepEqual(notes, users);
  });
});

describe('a client that is gone', () => {
  for (const name of ['withAuth', 'authMiddleware'] as const) {
    it(`gets none of its pipelined requests handled, over ${name}`, async (t) => {
      const reached: unknown[] = [];
      const handler: RequestListener = (req, res) => {
        reached.push(req.url);
        if (req.url !== '/first') res.end();
      };
      const options: AuthOptions = { keys: await serverKeys(), publicPaths: ['/first'] };
      const middleware = authMiddleware(options);
      const { server, port } = await serve(
        t,
        name === 'withAuth'
          ? withAuth(handler, options)
          : (req, res) => middleware(req, res, () => void handler(req, res)),
      );
      const release = hold(t);
      const tokens = await Promise.all(Array.from({ length: 20 }, (_, index) => mint({ sub: `user ${index}` })));
      const head = (path: string, token: string): string =>
        `POST ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nAuthorization: Bearer ${token}\r\n\r\nx`;
      const connection = once(server, 'connection');
      const client = connect(port, '127.0.0.1');
      client.on('error', () => {}).write(head('/first', 'x') + tokens.map((token) => head('/mcp', token)).join(''));
      const [socket] = (await connection) as [Socket];
      for (let waited = 0; reached.length === 0 && waited < 2000; waited += 5) await delay(5);
      const closed = new Promise((resolve) => socket.once('close', resolve));
      client.resetAndDestroy();
      await closed;
      release();
      await delay(150);
      assert.deepEqual(reached, ['/first']);
    });
  }
});

describe('req.auth that somebody in front has left', () => {
  const theirs: AuthInfo = { token: 'theirs', clientId: 'root', scopes: ['admin'], extra: { sub: 'root' } };
  const leaves: Record<string, (req: IncomingMessage) => void> = {
    'on the request': (req) => void Object.assign(req, { auth: theirs }),
    'on its prototype': (req) =>
      void Object.setPrototypeOf(
        req,
        Object.create(Object.getPrototypeOf(req), { auth: { value: theirs, writable: true } }),
      ),
    'as a member that is not listed': (req) =>
      void Object.defineProperty(req, 'auth', { value: theirs, writable: true, configurable: true }),
    'as a member that stays': (req) => void Object.defineProperty(req, 'auth', { value: theirs, writable: true }),
  };
  for (const [where, leave] of Object.entries(leaves)) {
    it(`${where} is gone without a user, and replaced by a user’s`, async (t) => {
      const guarded = withAuth((req: AuthenticatedRequest, res) => res.end(JSON.stringify(req.auth?.extra ?? null)), {
        keys: await serverKeys(),
        anonymous: true,
        publicPaths: ['/open'],
      });
      const { port } = await serve(t, (req, res) => {
        leave(req);
        guarded(req, res);
      });
      assert.equal((await ask(port)).body, 'null');
      const headers = await bearer({ sub: 'ada' });
      assert.equal((await ask(port, { path: '/open', headers })).body, 'null');
      assert.equal(JSON.parse((await ask(port, { headers })).body).sub, 'ada');
    });
  }

  it('is gone by an inner middleware that lets nobody in particular through', async (t) => {
    const keys = await serverKeys();
    const outer = authMiddleware({ keys });
    const inner = authMiddleware({ keys, anonymous: true, tokenHeader: 'x-inner' });
    const seen: unknown[] = [];
    const { port } = await serve(t, (req, res) =>
      outer(req, res, () => {
        seen.push(Reflect.get(req, 'auth')?.extra.sub);
        inner(req, res, () => {
          seen.push('auth' in req, getUser().sub, getAuth(), getAuthInfo(req), getUser(req).sub);
          res.end();
        });
      }),
    );
    await ask(port, { headers: await bearer({ sub: 'ada' }) });
    assert.deepEqual(seen, ['ada', false, undefined, undefined, undefined, undefined]);
  });

  it('on a Request of fetch is gone as well', async () => {
    const handler = withAuthFetch((request) => Response.json(Reflect.get(request, 'auth')?.extra ?? null), {
      keys: await serverKeys(),
      anonymous: true,
    });
    for (const [headers, expected] of [
      [{}, null],
      [await bearer({ sub: 'ada' }), 'ada'],
    ] as const) {
      const request = Object.assign(new Request('http://a/', { headers }), { auth: theirs });
      assert.equal((await (await handler(request)).json())?.sub ?? null, expected);
      assert.equal(Object.hasOwn(request, 'auth'), expected !== null);
    }
  });
});

describe('getUser(req), getAuth(req) and getAuthInfo(req)', () => {
  const OUTSIDE = new AsyncResource('outside');
  const outsideOf = <T>(look: () => T): T => OUTSIDE.runInAsyncScope(look);

  it('are of that request, wherever they are asked, also when it is over', async (t) => {
    const requests: IncomingMessage[] = [];
    const { port } = await guard(t, { resource: 'https://mcp.example/mcp' }, (req, res) => {
      requests.push(req);
      res.end();
    });
    for (const sub of ['ada', 'bob']) await ask(port, { headers: await bearer({ sub, scope: 'read' }) });
    const [ada, bob] = requests;
    assert.ok(ada && bob);
    for (const [req, sub] of [
      [ada, 'ada'],
      [bob, 'bob'],
    ] as const) {
      assert.equal(getUser(req).sub, sub);
      assert.deepEqual(getAuth(req)?.scopes, ['read']);
      assert.equal(getAuthInfo(req)?.extra['sub'], sub);
      assert.equal(getAuthInfo(req)?.resource?.href, 'https://mcp.example/mcp');
      assert.notEqual(getAuthInfo(req), getAuthInfo(req), 'a new one at every call');
    }
    assert.equal(
      runAs({ user: { sub: 'eve' } }, () => getUser(ada).sub),
      'ada',
      'not of the context',
    );
    assert.equal(getUser().sub, undefined);
  });

  it('work where the host has left the context: after an await elsewhere, and in another’s', async (t) => {
    const { port } = await guard(t, {}, (req, res) => {
      const seen = outsideOf(() => [getUser().sub ?? null, getUser(req).sub, getAuth(req)?.user.sub]);
      res.end(JSON.stringify(seen));
    });
    const { body } = await ask(port, { headers: await bearer({ sub: 'ada' }) });
    assert.equal(body, '[null,"ada","ada"]');
  });

  it('know a Request of fetch, a request of HTTP/2, and an anonymous and a public one', async (t) => {
    const keys = await serverKeys();
    const options: AuthOptions = { keys, anonymous: true, publicPaths: ['/open'] };
    const look = (req: object): string =>
      outsideOf(() =>
        JSON.stringify([getUser(req).sub ?? null, getAuth(req)?.keyId === undefined, getAuthInfo(req) === undefined]),
      );
    const fetchHandler = withAuthFetch((request) => new Response(look(request)), options);
    const server = createHttp2(asHttp2(withAuth((req, res) => res.end(look(req)), options))).listen(0, '127.0.0.1');
    t.after(() => server.close());
    await once(server, 'listening');
    const session = connectHttp2(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    t.after(() => session.close());
    const { port } = await guard(t, options, (req, res) => res.end(look(req)));
    const headers = await bearer({ sub: 'ada' });
    for (const [path, fields, expected] of [
      ['/mcp', headers, '["ada",false,false]'],
      ['/mcp', {}, '[null,true,true]'],
      ['/open', headers, '[null,true,true]'],
    ] as const) {
      assert.equal((await ask(port, { path, headers: { ...fields } })).body, expected);
      assert.equal(await text(session.request({ ':path': path, ...fields }).end()), expected);
      assert.equal(
        await (await fetchHandler(new Request(`http://a${path}`, { headers: { ...fields } }))).text(),
        expected,
      );
    }
  });

  it('know nobody of a request that no handler got: an access log asks for every one', async (t) => {
    const logged: string[] = [];
    const log = (req: IncomingMessage, res: ServerResponse): unknown =>
      res.on('close', () => logged.push(`${res.statusCode} ${getUser(req).sub} ${getAuth(req)} ${getAuthInfo(req)}`));
    const keys = await serverKeys();
    const guarded = withAuth((_req, res) => void res.end(), { keys, cors: { origin: '*' } });
    const { port, server } = await serve(t, (req, res) => {
      log(req, res);
      if (req.url === '/broken') res.getHeader = () => assert.fail('broken');
      guarded(req, res);
    });
    const { authorization } = await bearer({ sub: 'ada' });
    const preflight = { origin: 'https://app.example', 'access-control-request-method': 'POST' };
    const asked: [status: string, options: Parameters<typeof ask>[1]][] = [
      ['401', {}],
      ['401', { headers: { authorization: 'Bearer x' } }],
      ['401', { headers: { authorization: authorization.slice(0, -1) } }], // decrypted, and then refused
      ['204', { method: 'OPTIONS', headers: preflight }],
      ['200', { path: '/.well-known/jwks.json' }],
      ['500', { path: '/broken', headers: { authorization } }],
    ];
    for (const [, options] of asked) await ask(port, options);
    const release = hold(t);
    const gone = request({ host: '127.0.0.1', port, headers: { ...(await bearer({ sub: 'bob' })) }, agent: false });
    gone.on('error', () => {}).end();
    const [, res] = (await once(server, 'request')) as [IncomingMessage, ServerResponse];
    const closed = once(res, 'close');
    gone.destroy();
    await closed;
    release();
    assert.deepEqual(
      logged,
      [...asked, ['200']].map(([status]) => `${status} undefined undefined undefined`),
    );
    await ask(port, { headers: await bearer({ sub: 'ada' }) });
    assert.match(logged.at(-1) ?? '', /^200 ada /);
    const asking = new Request('http://a/');
    assert.equal((await withAuthFetch(() => new Response(), { keys })(asking)).status, 401);
    assert.equal(getUser(asking).sub, undefined);
  });

  it('refuse what no middleware has seen: a wrapper must not look like an empty user', async (t) => {
    let seen: IncomingMessage | undefined;
    let unseen: IncomingMessage | undefined;
    const guarded = withAuth((req, res) => void ((seen = req), res.end()), { keys: await serverKeys() });
    const { port } = await serve(t, (req, res) => {
      if (req.url === '/mcp') return guarded(req, res);
      unseen = req;
      return void res.end();
    });
    await ask(port, { path: '/health' });
    await ask(port, { path: '/mcp', headers: await bearer({ sub: 'ada' }) });
    assert.ok(seen && unseen);
    const strangers: [name: string, value: unknown][] = [
      ['a request that was answered in front', unseen],
      ['an object', {}],
      ['an array', []],
      ['a function', () => {}],
      ['a wrapper as of Fastify', { raw: seen }],
      ['a wrapper as of Koa', { req: seen, request: { req: seen } }],
      ['an object that inherits from it', Object.create(seen)],
      ['a Request of fetch', new Request('http://a/')],
      ['its headers', seen.headers],
      ['its socket', seen.socket],
      ['null', null],
      ['a number', 1],
      ['a string', 'req'],
    ];
    for (const [name, value] of strangers) {
      for (const look of [getUser, getAuth, getAuthInfo]) {
        assert.throws(
          () => Reflect.apply(look, undefined, [value]),
          (error) => error instanceof KeyError && error.code === 'option' && /pass the raw one/.test(error.message),
          `${look.name}: ${name}`,
        );
      }
    }
    assert.equal(getUser(undefined).sub, undefined, 'undefined is no request');
  });
});

describe('runAs', () => {
  it('runs a function as a user, returns what it returns, and ends', async () => {
    const user = { sub: 'ada', scope: 'read write', exp: 4_000_000_000, org: { roles: ['a'] } };
    const result = runAs({ user }, () => ({ user: getUser(), auth: getAuth(), info: getAuthInfo() }));
    assert.deepEqual(JSON.parse(JSON.stringify(result.user)), user);
    assert.deepEqual(JSON.parse(JSON.stringify(result.auth)), {
      user,
      token: '',
      signed: false,
      keyId: '',
      scopes: ['read', 'write'],
      expiresAt: 4_000_000_000,
    });
    assert.deepEqual(
      [result.info?.clientId, result.info?.scopes, result.info?.expiresAt],
      ['ada', ['read', 'write'], 4_000_000_000],
    );
    assert.deepEqual([getUser().sub, getAuth()], [undefined, undefined]);
    const failure = new Error('of the function');
    assert.throws(
      () =>
        runAs({ user: {} }, () => {
          throw failure;
        }),
      (error) => error === failure,
    );
    assert.equal(getAuth(), undefined);
  });

  it('holds in whatever the function starts, and nests', async () => {
    const seen: unknown[] = [];
    const later = runAs({ user: { sub: 'ada' } }, async () => {
      seen.push(getUser().sub);
      await null;
      seen.push(getUser().sub);
      await delay(1);
      runAs({ user: { sub: 'bob' } }, () => seen.push(getUser().sub));
      await new Promise((resolve) => setTimeout(resolve, 1));
      seen.push(getUser().sub);
      return getUser().sub;
    });
    assert.equal(getUser().sub, undefined);
    assert.equal(await later, 'ada');
    assert.deepEqual(seen, ['ada', 'ada', 'bob', 'ada']);
    const both = await Promise.all(
      ['ada', 'bob'].map((sub) =>
        runAs({ user: { sub } }, async () => {
          await delay(Math.random() * 5);
          return getUser().sub;
        }),
      ),
    );
    assert.deepEqual(both, ['ada', 'bob']);
  });

  it('takes what authenticate gave, as it is', async () => {
    const verifier = new JWETokenVerifier({ keys: await serverKeys() });
    const auth = await verifier.authenticate(await mint({ sub: 'ada', scope: 'read' }));
    runAs(auth, () => {
      assert.equal(getUser(), auth.user, 'not copied again');
      assert.deepEqual({ ...getAuth() }, { ...auth });
      assert.equal(getAuthInfo()?.token, auth.token);
    });
  });

  it('freezes a copy: neither the caller nor the function changes who it is', () => {
    const user = { sub: 'ada', org: { roles: ['reader'] } };
    const scopes = ['read'];
    runAs({ user, scopes }, () => {
      user.sub = 'root';
      user.org.roles.push('admin');
      scopes.push('admin');
      const seen = getUser<{ org: { roles: string[] } }>();
      assert.deepEqual([seen.sub, seen.org.roles.length, getAuth()?.scopes], ['ada', 1, ['read']]);
      assert.throws(() => Object.assign(seen, { sub: 'root' }), TypeError);
      assert.throws(() => seen.org.roles.push('admin'), TypeError);
      assert.throws(() => Object.assign(getAuth() ?? {}, { signed: true }), TypeError);
      for (const object of [seen, seen.org]) assert.equal(Object.getPrototypeOf(object), null);
      assert.equal(seen['toString'], undefined);
    });
  });

  it('takes an object that is frozen, but no prototype and no depth on trust', () => {
    class User {
      sub = 'ada';
      get admin(): boolean {
        return true;
      }
    }
    for (const user of [Object.freeze(new User()), Object.freeze({ sub: 'ada', inner: { a: 1 } })])
      runAs({ user: untyped(user) }, () => {
        assert.equal(Object.getPrototypeOf(getUser()), null);
        assert.equal(getUser()['admin'], undefined);
      });
    const inner = { roles: ['reader'] };
    const bare: AuthUser = Object.freeze(Object.assign(Object.create(null), { sub: 'ada', inner }));
    runAs({ user: bare }, () => {
      inner.roles.push('admin');
      assert.equal(JSON.stringify(getUser()['inner']), '{"roles":["reader"]}');
    });
  });

  it('refuses what is no user, and claims beyond the limits of a token', () => {
    for (const auth of [
      undefined,
      null,
      {},
      'ada',
      [],
      { user: null },
      { user: 'ada' },
      { user: ['ada'] },
      { user: 1 },
    ])
      assert.throws(
        () => runAs(untyped(auth), () => assert.fail('ran')),
        (error) => error instanceof KeyError && error.code === 'option',
        JSON.stringify(auth),
      );
    const deep = Array.from({ length: 40 }).reduce<object>((inner) => ({ inner }), {});
    for (const user of [deep, { list: Array.from({ length: 1001 }, () => 0) }, { id: 2 ** 53 }, { id: Infinity }])
      assert.throws(
        () => runAs({ user: untyped(user) }, () => assert.fail('ran')),
        (error) => error instanceof AuthError,
      );
  });

  it('inside a request leaves the request as it was', async (t) => {
    const { port } = await guard(t, {}, (req, res) => {
      const inner = runAs({ user: { sub: 'bob' } }, () => [getUser().sub, getUser(req).sub]);
      res.end(JSON.stringify([...inner, getUser().sub]));
    });
    assert.equal((await ask(port, { headers: await bearer({ sub: 'ada' }) })).body, '["bob","ada","ada"]');
  });
});

describe('two copies of the module', () => {
  /** The built file once more, under another name: another module to Node, as a bundler's copy is. */
  async function secondCopy(t: Scope): Promise<typeof import('mcp-auth-middleware')> {
    const folder = mkdtempSync(join(tmpdir(), 'mcp-copy-'));
    t.after(() => rmSync(folder, { recursive: true }));
    const file = join(folder, 'copy.mjs');
    copyFileSync(join(root, 'dist/mcp-auth.js'), file);
    const copy: typeof import('mcp-auth-middleware') = await import(pathToFileURL(file).href);
    assert.notEqual(copy.getUser, getUser);
    return copy;
  }

  it('share the context and the requests, in both directions', async (t) => {
    const copy = await secondCopy(t);
    const library = await import('mcp-auth-middleware');
    const keys = await serverKeys();
    for (const [guarding, reading] of [
      [library, copy],
      [copy, library],
    ] as const) {
      const { port } = await serve(
        t,
        guarding.withAuth(
          async (req, res) => {
            const look = (): unknown[] => [
              reading.getUser().sub,
              reading.getAuth()?.user.sub,
              reading.getUser(req).sub,
            ];
            const seen = look();
            await delay(1);
            seen.push(...look(), reading.getAuthInfo(req)?.extra['sub']);
            res.end(JSON.stringify(seen));
          },
          { keys },
        ),
      );
      const { body } = await ask(port, { headers: await bearer({ sub: 'ada' }) });
      assert.deepEqual(JSON.parse(body), Array(7).fill('ada'));
      const handler = guarding.withAuthFetch(
        (request) => new Response(`${reading.getUser().sub} ${reading.getUser(request).sub}`),
        { keys },
      );
      const answer = await handler(new Request('http://a/', { headers: await bearer({ sub: 'bob' }) }));
      assert.equal(await answer.text(), 'bob bob');
      assert.equal(
        guarding.runAs({ user: { sub: 'eve' } }, () => reading.getUser().sub),
        'eve',
      );
    }
  });

  it('inside one another have the inner one’s user everywhere', async (t) => {
    const copy = await secondCopy(t);
    const library = await import('mcp-auth-middleware');
    const keys = await serverKeys();
    for (const [first, second] of [
      [library, copy],
      [copy, library],
      [copy, copy],
    ] as const) {
      const outer = first.authMiddleware({ keys, anonymous: true });
      const inner = second.authMiddleware({ keys, tokenHeader: 'x-inner' });
      const seen: unknown[] = [];
      const { port } = await serve(t, (req, res) =>
        outer(req, res, () =>
          inner(req, res, () => {
            const note = (): void => {
              seen.push(first.getUser().sub, second.getUser().sub, first.getUser(req).sub, second.getUser(req).sub);
            };
            note();
            seen.push(Reflect.get(req, 'auth').extra.sub);
            res.on('finish', note);
            req
              .on('end', () => {
                note();
                res.write('x', note);
                res.end(note);
              })
              .resume();
          }),
        ),
      );
      const inside = `Bearer ${await mint({ sub: 'inner' })}`;
      for (const outside of [{}, await bearer({ sub: 'outer' })]) {
        await ask(port, { method: 'POST', body: 'x', headers: { ...outside, 'x-inner': inside } });
        await delay(10);
      }
      assert.equal(seen.length, 2 * (5 * 4 + 1));
      assert.deepEqual(new Set(seen), new Set(['inner']));
    }
  });
});
