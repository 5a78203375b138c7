// Browsers: who may read answers from a page, what the preflight allows, and that no credentials ever come along.
import assert from 'node:assert/strict';
import type { RequestListener } from 'node:http';
import { describe, it } from 'node:test';
import { authMiddleware, type AuthOptions, withAuthFetch } from 'mcp-auth-middleware';
import { serve } from './support/support.js';
import { untyped } from './support/tokens.js';
import { type Answer, type Ask, ask, bearer, guard, serverKeys, whoami } from './support/wire.js';

const APP = 'https://app.example';
const EVIL = 'https://evil.example';
const ANY: AuthOptions = { cors: { origin: '*' } };
const LIST: AuthOptions = { cors: { origin: [APP, 'http://localhost:5173'] } };
const EXPOSED = 'WWW-Authenticate, Mcp-Session-Id, Retry-After';
const DOCUMENT = '/.well-known/jwks.json';

const preflight = (origin: string, more: Record<string, string> = {}): Ask => ({
  method: 'OPTIONS',
  headers: { origin, 'access-control-request-method': 'POST', ...more },
});

/** The fields by which a browser decides. */
const corsOf = ({ headers }: Answer): Record<string, unknown> =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => name.startsWith('access-control-') || name === 'vary'));
const names = (list: unknown): string[] => String(list).toLowerCase().split(/, */);

describe('a preflight', () => {
  const allowed = [
    'authorization',
    'content-type',
    'accept',
    'mcp-protocol-version',
    'mcp-session-id',
    'last-event-id',
    'mcp-method',
    'mcp-name',
  ];

  for (const [name, options, fields] of [
    ['of any origin', ANY, { 'access-control-allow-origin': '*' }],
    ['of a listed origin', LIST, { 'access-control-allow-origin': APP, vary: 'Origin' }],
    [
      'of the origin of the resource',
      { ...LIST, resource: `${APP}/mcp`, cors: { origin: [] } },
      { 'access-control-allow-origin': APP, vary: 'Origin' },
    ],
  ] satisfies [string, AuthOptions, object][]) {
    it(`${name} is answered before authentication`, async (t) => {
      const { port } = await guard(t, options, () => assert.fail('the handler was reached'));
      const { status, headers, body } = await ask(port, preflight(APP));
      const {
        'access-control-allow-headers': allowHeaders,
        'access-control-allow-methods': allowMethods,
        ...rest
      } = headers;
      assert.deepEqual(
        { status, body, rest },
        {
          status: 204,
          body: '',
          rest: { ...fields, 'access-control-expose-headers': EXPOSED, 'access-control-max-age': '600' },
        },
      );
      assert.deepEqual(names(allowHeaders).sort(), [...allowed].sort());
      for (const method of ['get', 'post', 'delete']) assert(names(allowMethods).includes(method), method);
    });
  }

  it('allows the field of the token', async (t) => {
    const { port } = await guard(t, { ...ANY, tokenHeader: 'X-MCP-Token' });
    assert(names((await ask(port, preflight(APP))).headers['access-control-allow-headers']).includes('x-mcp-token'));
  });

  it('allows the parameters it asks for, and nothing else it asks for', async (t) => {
    const { port } = await guard(t, ANY);
    const asked =
      'content-type,Mcp-Param-City, mcp-param-2_x ,mcp-param-user.id,mcp-param-a~!#,mcp-param-,mcp-param-a b,' +
      'x-mcp-param-y,cookie,x-evil,mcp-param-é,*,mcp-param-"q"';
    const { headers } = await ask(port, preflight(APP, { 'access-control-request-headers': asked }));
    assert.deepEqual(
      names(headers['access-control-allow-headers']).filter((name) => !allowed.includes(name)),
      ['mcp-param-city', 'mcp-param-2_x', 'mcp-param-user.id', 'mcp-param-a~!#'],
    );
  });

  for (const [name, request, status] of [
    ['from an origin that is not listed', preflight(EVIL), 403],
    ['from the origin null', preflight('null'), 403],
    ['from an origin whose name ends like a listed one', preflight('https://xapp.example'), 403],
    ['from an origin that begins like a listed one', preflight(`${APP}.evil.example`), 403],
    ['from a listed host over http', preflight('http://app.example'), 403],
    ['from a listed host at another port', preflight(`${APP}:8443`), 403],
    ['from two origins', preflight(`${APP}, ${EVIL}`), 403],
    ['without a method: no preflight', { method: 'OPTIONS', headers: { origin: APP } }, 401],
    [
      'without an origin: no preflight',
      { method: 'OPTIONS', headers: { 'access-control-request-method': 'POST' } },
      401,
    ],
    ['by another method: no preflight', { ...preflight(APP), method: 'POST' }, 401],
  ] satisfies [string, Ask, number][]) {
    it(`${name} is ${status}`, async (t) => {
      const { port } = await guard(t, LIST);
      assert.equal((await ask(port, request)).status, status);
    });
  }

  it('is none without cors, also from the origin of the resource', async (t) => {
    const { port } = await guard(t, { resource: `${APP}/mcp` });
    const answer = await ask(port, preflight(APP));
    assert.deepEqual([answer.status, corsOf(answer)], [401, {}]);
    assert.deepEqual([(await ask(port, preflight(EVIL))).status], [403]);
  });
});

describe('every other answer', () => {
  const requests = async (origin: string): Promise<[name: string, request: Ask, status: number][]> => [
    ['200', { headers: { origin, ...(await bearer({ email: 'e' })) } }, 200],
    ['200 of a public path', { path: '/open', headers: { origin } }, 200],
    ['400', { headers: { origin, authorization: ['Bearer x', 'Bearer y'] } }, 400],
    ['401 without a token', { headers: { origin } }, 401],
    ['401 with a bad one', { headers: { origin, authorization: 'Bearer x' } }, 401],
    ['403', { headers: { origin, ...(await bearer({})) } }, 403],
  ];
  const more: AuthOptions = { publicPaths: ['/open'], requiredClaims: ['email'] };

  it('tells any page what it exposes, when any origin is welcome', async (t) => {
    const { port } = await guard(t, { ...ANY, ...more });
    for (const origin of [APP, EVIL, 'null']) {
      for (const [name, request, status] of await requests(origin)) {
        const answer = await ask(port, request);
        assert.equal(answer.status, status, name);
        assert.deepEqual(
          corsOf(answer),
          { 'access-control-allow-origin': '*', 'access-control-expose-headers': EXPOSED },
          name,
        );
      }
    }
  });

  it('names a listed origin, and varies by it', async (t) => {
    const { port } = await guard(t, { ...LIST, ...more });
    for (const origin of [APP, 'http://localhost:5173']) {
      for (const [name, request, status] of await requests(origin)) {
        const answer = await ask(port, request);
        assert.equal(answer.status, status, name);
        assert.deepEqual(
          corsOf(answer),
          { 'access-control-allow-origin': origin, 'access-control-expose-headers': EXPOSED, vary: 'Origin' },
          name,
        );
      }
    }
  });

  it('varies by the origin also without one and for a foreign one, whom it does not name', async (t) => {
    const { port } = await guard(t, LIST);
    for (const headers of [undefined, { origin: EVIL }]) {
      const { 'access-control-allow-origin': allowed, vary } = corsOf(await ask(port, { headers }));
      assert.deepEqual([allowed, vary], [undefined, 'Origin']);
    }
  });

  it('has no such field without cors', async (t) => {
    const { port } = await guard(t, { resource: `${APP}/mcp`, ...more });
    for (const [name, request, status] of await requests(APP)) {
      const answer = await ask(port, request);
      assert.equal(answer.status, status, name);
      assert.deepEqual(corsOf(answer), {}, name);
    }
  });

  it('never allows credentials', async (t) => {
    for (const options of [ANY, LIST, { resource: `${APP}/mcp` }]) {
      const { port } = await guard(t, { ...options, ...more });
      const all: Ask[] = [
        ...(await requests(APP)).map(([, request]) => request),
        preflight(APP, { cookie: 'a=b' }),
        { path: DOCUMENT, headers: { origin: APP } },
        { ...preflight(APP), path: DOCUMENT },
      ];
      for (const request of all)
        assert.equal((await ask(port, request)).headers['access-control-allow-credentials'], undefined);
    }
  });

  it('leaves the public documents open to all, with any setting', async (t) => {
    for (const options of [ANY, LIST, {}]) {
      const { port } = await guard(t, options);
      const answer = await ask(port, { path: DOCUMENT, headers: { origin: EVIL } });
      assert.deepEqual([answer.status, answer.headers['access-control-allow-origin']], [200, '*']);
      assert.deepEqual([(await ask(port, { ...preflight(EVIL), path: DOCUMENT })).status], [204]);
    }
  });

  it('of a handler keeps the fields it sets in any of Node’s ways', async (t) => {
    const ways: Record<string, RequestListener> = {
      setHeader: (_req, res) => res.setHeader('x-own', '1').end(),
      'writeHead with an object': (_req, res) => res.writeHead(200, { 'x-own': '1' }).end(),
      'writeHead with a message': (_req, res) => res.writeHead(200, 'Fine', { 'x-own': '1' }).end(),
      'writeHead with a flat array': (_req, res) => res.writeHead(200, ['x-own', '1']).end(),
      flushHeaders: (_req, res) => {
        res.setHeader('x-own', '1').flushHeaders();
        res.end();
      },
    };
    for (const [way, handler] of Object.entries(ways)) {
      const { port } = await guard(t, { ...LIST, anonymous: true }, handler);
      const { headers } = await ask(port, { headers: { origin: APP } });
      const {
        'x-own': own,
        'access-control-allow-origin': allowed,
        vary,
        'access-control-expose-headers': exposed,
      } = headers;
      assert.deepEqual([own, allowed, vary, exposed], ['1', APP, 'Origin', EXPOSED], way);
    }
  });

  it('leaves a Response that a handler gives for many requests as it is', async () => {
    const accepted = new Response(null, { status: 202, statusText: 'Fine', headers: { 'x-own': '1' } });
    const handler = withAuthFetch(() => accepted, { ...LIST, keys: await serverKeys(), anonymous: true });
    for (const origin of [APP, undefined, APP]) {
      const answer = await handler(new Request('http://a/', { headers: origin === undefined ? {} : { origin } }));
      const { status, statusText, headers } = answer;
      assert.deepEqual([status, statusText, headers.get('x-own'), headers.get('vary')], [202, 'Fine', '1', 'Origin']);
      assert.equal(headers.get('access-control-allow-origin'), origin ?? null);
    }
    assert.deepEqual([...accepted.headers.keys()], ['x-own']);
  });

  it('goes with what fetch handlers answer, also immutable responses', async () => {
    const keys = await serverKeys();
    const own = new Response('own', {
      status: 201,
      statusText: 'Fine',
      headers: { 'x-own': '1', 'access-control-allow-origin': 'https://other.example' },
    });
    for (const [response, status] of [
      [own, 201],
      [Response.redirect('https://a.example/'), 302],
      [new Response(null, { status: 204 }), 204],
    ] as const) {
      const answer = await withAuthFetch(() => response, { ...LIST, keys, anonymous: true })(
        new Request('http://a/', { headers: { origin: APP } }),
      );
      assert.equal(answer.status, status);
      assert.equal(answer.headers.get('access-control-allow-origin'), APP);
      assert.equal(answer.headers.get('vary'), 'Origin');
      assert.equal(answer.headers.get('access-control-expose-headers'), EXPOSED);
      if (status === 201)
        assert.deepEqual([answer.statusText, answer.headers.get('x-own'), await answer.text()], ['Fine', '1', 'own']);
    }
  });
});

describe('the Origin of a request', () => {
  it('is of no interest when any is welcome', async (t) => {
    const { port } = await guard(t, ANY, whoami);
    for (const origin of [EVIL, 'null', '', 'x'])
      assert.equal((await ask(port, { headers: { origin, ...(await bearer({})) } })).status, 200, origin);
  });

  it('is refused in every form that is not exactly listed, and never reaches the handler', async (t) => {
    const { port } = await guard(t, LIST, () => assert.fail('the handler was reached'));
    for (const origin of [
      EVIL,
      'null',
      '',
      '*',
      `${APP}/`,
      'https://APP.example',
      `${APP}:443`,
      ` ${APP}.`,
      `${APP},${APP}`,
      'app.example',
      '//app.example',
      'http://localhost:5173/',
      'http://127.0.0.1:5173',
    ]) {
      assert.equal((await ask(port, { headers: { origin, ...(await bearer({})) } })).status, 403, origin);
    }
  });
});

describe('what a preflight allows beside the fields of MCP', () => {
  it('is what the server names, wherever the page comes from', async (t) => {
    for (const origin of ['*', [APP]] as const) {
      const allowedHeaders = ['X-Tenant', 'traceparent'];
      const cors = { origin: typeof origin === 'string' ? origin : [...origin], allowedHeaders };
      const { port } = await guard(t, { cors, tokenHeader: 'X-MCP-Token' });
      allowedHeaders.push('x-later');
      const asked = { 'access-control-request-headers': 'x-tenant, x-later, x-evil, mcp-param-a' };
      const allowed = names((await ask(port, preflight(APP, asked))).headers['access-control-allow-headers']);
      for (const name of ['x-tenant', 'traceparent', 'x-mcp-token', 'authorization', 'mcp-param-a'])
        assert.ok(allowed.includes(name), name);
      for (const name of ['x-later', 'x-evil', '*']) assert.ok(!allowed.includes(name), name);
      assert.equal(new Set(allowed).size, allowed.length, 'each once');
    }
  });
  it('is no more without it', async (t) => {
    const { port } = await guard(t, ANY);
    assert.ok(!names((await ask(port, preflight(APP))).headers['access-control-allow-headers']).includes('x-tenant'));
  });
});

describe('a page that is refused', () => {
  it('can read every field that it is told to obey', async (t) => {
    const exp = Math.floor(Date.now() / 1000) + 100;
    let clock = exp - 10;
    const keys = { keys: [{ ...(await serverKeys()).keys[0], kty: 'RSA', exp }] };
    for (const cors of [{ origin: '*' as const }, { origin: [APP] }]) {
      clock = exp - 10;
      const { port } = await guard(t, { keys, cors, requiredScopes: ['read'], now: () => clock });
      const open = { origin: APP, ...(await bearer({ iat: clock - 1, scope: 'read' })) };
      const rows: [what: string, headers: Record<string, string>, status: number, field: string | undefined][] = [
        ['no token', { origin: APP }, 401, 'www-authenticate'],
        ['a bad token', { origin: APP, authorization: 'Bearer x' }, 401, 'www-authenticate'],
        ['a scope missing', { origin: APP, ...(await bearer({ iat: clock - 1 })) }, 403, 'www-authenticate'],
        ['a good token', open, 200, undefined],
      ];
      const expect = async (
        headers: Record<string, string>,
        status: number,
        field: string | undefined,
      ): Promise<void> => {
        const answer = await ask(port, { headers });
        assert.equal(answer.status, status);
        const exposed = names(answer.headers['access-control-expose-headers']);
        assert.deepEqual(exposed, ['www-authenticate', 'mcp-session-id', 'retry-after']);
        if (field !== undefined) assert.ok(answer.headers[field] !== undefined && exposed.includes(field), field);
        assert.ok(['*', APP].includes(String(answer.headers['access-control-allow-origin'])));
      };
      for (const [, headers, status, field] of rows) await expect(headers, status, field);
      clock = exp;
      await expect(open, 503, 'retry-after');
    }
  });
});

describe('CORS and Vary', () => {
  const TABLE: [name: string, options: AuthOptions, vary: string | undefined][] = [
    ['neither', {}, undefined],
    ['any origin', ANY, undefined],
    ['a list', LIST, 'Origin'],
    ['another field for the token', { tokenHeader: 'X-MCP-Token' }, 'x-mcp-token'],
    ['that and any origin', { ...ANY, tokenHeader: 'X-MCP-Token' }, 'x-mcp-token'],
    ['that and a list', { ...LIST, tokenHeader: 'X-MCP-Token' }, 'Origin, x-mcp-token'],
    ['Authorization in another case', { ...LIST, tokenHeader: 'AUTHORIZATION' }, 'Origin'],
  ];
  for (const [name, options, vary] of TABLE) {
    it(`go together on every answer, with ${name}`, async (t) => {
      const more: AuthOptions = { ...options, publicPaths: ['/open'], requiredClaims: ['email'] };
      const { port } = await guard(t, more);
      const fetchHandler = withAuthFetch(() => new Response(), { ...more, keys: await serverKeys() });
      const field = options.tokenHeader ?? 'authorization';
      const token = (claims: object): Promise<Record<string, string>> =>
        bearer(claims).then(({ authorization }) => ({ [field]: authorization }));
      for (const [headers, path] of [
        [{}, '/mcp'],
        [{ [field]: 'Bearer x' }, '/mcp'],
        [await token({}), '/mcp'],
        [await token({ email: 'e' }), '/mcp'],
        [{}, '/open'],
      ] as const) {
        assert.equal((await ask(port, { headers: { ...headers }, path })).headers.vary, vary, path);
        const answer = await fetchHandler(new Request(`http://localhost${path}`, { headers: { ...headers } }));
        assert.equal(answer.headers.get('vary') ?? undefined, vary, path);
      }
      assert.equal((await ask(port, { path: DOCUMENT })).headers.vary, undefined, 'a document is the same for all');
    });
  }
  const HEADS: Record<string, RequestListener> = {
    setHeader: (_req, res) => res.setHeader('Vary', 'Accept').setHeader('x-own', ['1', '2']).end(),
    'writeHead with an object': (_req, res) => res.writeHead(200, { Vary: 'Accept', 'x-own': ['1', '2'] }).end(),
    'writeHead with a message': (_req, res) => res.writeHead(200, 'OK', { vary: 'Accept', 'x-own': ['1', '2'] }).end(),
    'writeHead with a flat array': (_req, res) =>
      res.writeHead(200, ['Vary', 'Accept', 'x-own', '1', 'X-Own', '2']).end(),
    'writeHead with pairs': (_req, res) =>
      res
        .writeHead(
          200,
          untyped([
            ['vary', 'Accept'],
            ['x-own', '1'],
            ['x-own', '2'],
          ]),
        )
        .end(),
    removeHeader: (_req, res) => {
      res.removeHeader('vary');
      res
        .setHeader('x-own', ['1', '2'])
        .writeHead(200, untyped({ vary: ['Accept'] }))
        .end();
    },
  };
  for (const [way, handler] of Object.entries(HEADS)) {
    it(`are named beside what a handler names itself: ${way}`, async (t) => {
      const options: AuthOptions = { anonymous: true, tokenHeader: 'x-token', cors: { origin: [APP] } };
      const { port } = await guard(t, options, handler);
      const { headers } = await ask(port, { headers: { origin: APP } });
      assert.deepEqual([headers.vary, headers['x-own']], ['Accept, Origin, x-token', '1, 2']);
      assert.equal(headers['access-control-expose-headers'], EXPOSED);
    });
  }
  it('keeps the Vary that someone before it has set', async (t) => {
    const middleware = authMiddleware({
      keys: await serverKeys(),
      anonymous: true,
      cors: { origin: ['https://app.example'] },
    });
    const { port } = await serve(t, (req, res) => {
      res.setHeader('vary', 'Accept-Encoding');
      middleware(req, res, () => res.end());
    });
    assert.match(String((await ask(port)).headers.vary), /accept-encoding/i);
  });
  it('keeps the fields that a fetch handler exposes', async () => {
    const options: AuthOptions = { keys: await serverKeys(), anonymous: true, cors: { origin: [APP] } };
    const own = { 'access-control-expose-headers': 'X-Total' };
    const handler = withAuthFetch(() => new Response('', { headers: own }), options);
    const answer = await handler(new Request('http://a/', { headers: { origin: APP } }));
    assert.equal(answer.headers.get('access-control-expose-headers'), `X-Total, ${EXPOSED}`);
  });
  it('keeps the fields that a CORS layer in front exposes', async (t) => {
    const middleware = authMiddleware({ keys: await serverKeys(), anonymous: true, cors: { origin: [APP] } });
    const { port } = await serve(t, (req, res) => {
      res.setHeader('Access-Control-Expose-Headers', 'X-Total');
      middleware(req, res, () => res.end());
    });
    const { headers } = await ask(port, { headers: { origin: APP } });
    assert.equal(headers['access-control-expose-headers'], `X-Total, ${EXPOSED}`);
  });
  it('lets an error of a fetch handler pass', async () => {
    const options: AuthOptions = { keys: await serverKeys(), anonymous: true, cors: { origin: [APP] } };
    const { type } = await withAuthFetch(() => Response.error(), options)(new Request('http://a/'));
    assert.equal(type, 'error');
  });
  it('keeps the Vary of a fetch handler', async () => {
    const answer = await withAuthFetch(() => new Response('', { headers: { vary: 'Accept' } }), {
      keys: await serverKeys(),
      anonymous: true,
      cors: { origin: ['https://app.example'] },
    })(new Request('http://a/'));
    assert.match(String(answer.headers.get('vary')), /accept.*origin|origin.*accept/i);
  });
});
