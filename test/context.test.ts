// Whose request it is: in the handler, in everything it starts, and never in anyone else's.
import assert from 'node:assert/strict';
import { AsyncLocalStorage, AsyncResource } from 'node:async_hooks';
import { EventEmitter, once } from 'node:events';
import { Agent, type IncomingMessage, request, type RequestListener, type ServerResponse } from 'node:http';
import { Transform } from 'node:stream';
import { text } from 'node:stream/consumers';
import { finished, pipeline } from 'node:stream/promises';
import { describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { AuthInfo as AuthInfoV1 } from '@modelcontextprotocol/sdk/server/auth/types.js';
import type { AuthInfo as AuthInfoV2 } from '@modelcontextprotocol/server';
import {
  type AuthInfo,
  authMiddleware,
  type AuthOptions,
  compactEncrypt,
  getAuth,
  getAuthInfo,
  getUser,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';
import { keyPair, root, run, serve } from './support/support.js';
import { ask, bearer, exchange, guard, mint, serverKeys } from './support/wire.js';

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
