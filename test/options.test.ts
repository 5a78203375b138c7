// A mistake in the options stops the server at construction, and says which option it is.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { runInNewContext } from 'node:vm';
import {
  authMiddleware,
  type AuthOptions,
  encryptToken,
  generateKeyPair,
  JWETokenVerifier,
  KeyError,
  type JwkSet,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';
import { keyPair, root, run, serve } from './support/support.js';
import { ask, bearer, guard, serverKeys, whoami } from './support/wire.js';

/** Options as JavaScript may bring them, whatever the types say. */
type Loose = Record<string, unknown>;
const wrappers: Record<string, (options: unknown) => unknown> = {
  withAuth: (options) => withAuth(whoami, options as AuthOptions),
  authMiddleware: (options) => authMiddleware(options as AuthOptions),
  withAuthFetch: (options) => withAuthFetch(() => new Response(), options as AuthOptions),
};
const verifier = (options: unknown): unknown => new JWETokenVerifier(options as AuthOptions);

let keys: JwkSet;
let issuer: { issuer: string; jwks: JwkSet };
before(async () => {
  keys = await serverKeys();
  const { publicJwk } = await keyPair('issuer');
  issuer = { issuer: 'https://idp.example', jwks: { keys: [{ ...publicJwk, alg: 'RS256', use: 'sig' }] } };
  delete process.env.MCP_KEY_FILE_PATH;
});

const refuses = (make: () => unknown, name: RegExp, what: string): void => {
  assert.throws(
    make,
    (error) => {
      assert(error instanceof KeyError, `${what}: ${String(error)}`);
      assert.equal(error.name, 'KeyError', what);
      assert.equal(error.code, 'option', what);
      assert.match(error.message, name, what);
      return true;
    },
    what,
  );
};

/** Bad values and good ones, for every option there is. */
const notText = [1, true, null, {}, [], '', Symbol('x'), (): void => {}];
const notTexts = ['a', 1, true, null, {}, [1], [''], ['a', null], new Set(['a'])];
const notBoolean = ['true', 1, 0, null, {}, []];
const notPath = ['', 'keys', 'keys/', 'https://a/keys', '/a b', '/a?b', '/a#b', '/é', '/\n', '/a\u007f', 1, null];
const notUrl = [
  '',
  'mcp.example',
  '/mcp',
  'ftp://mcp.example',
  'file:///mcp',
  'https://mcp.example/#x',
  'https://mcp.example/#',
  'https://mcp.example/"',
  'https://mcp.example/a b',
  ' https://mcp.example',
  'https://mcp.example/\n',
  'javascript:alert(1)',
  'https://',
  1,
  null,
  new URL('https://mcp.example'),
];
const notCount = ['1', -1, 1.5, Number.NaN, Infinity, null, 2 ** 53];

const verifierTable: Record<string, { bad: unknown[]; good: unknown[] }> = {
  keyFile: { bad: notText, good: [] },
  keys: { bad: ['{}', 1, null, []], good: [] },
  trustedIssuers: { bad: ['https://idp.example', {}, [], ['https://idp.example'], [null], [[]], null], good: [] },
  audience: { bad: [...notText, [''], ['a', 1]], good: ['a', ['a', 'b']] },
  clockTolerance: { bad: ['30', -1, 301, Number.NaN, Infinity, null], good: [0, 0.5, 30, 300] },
  maxTokenAge: { bad: ['60', 0, -1, Number.NaN, Infinity, null], good: [0.5, 60] },
  requireExp: { bad: notBoolean, good: [true, false] },
  claimsMember: { bad: notText, good: ['data', '__proto__'] },
  cache: {
    bad: [
      true,
      null,
      1000,
      'false',
      {},
      [],
      { maxEntries: 0 },
      { maxEntries: -1 },
      { maxEntries: 1.5 },
      { maxEntries: '1' },
      { maxEntries: Infinity },
      { maxEntries: 1, more: 1 },
      { max: 1 },
    ],
    good: [false, { maxEntries: 1 }],
  },
  maxPending: { bad: notCount, good: [0, 1, 1000] },
  isRevoked: { bad: [true, 'sub', null, {}, Promise.resolve(false)], good: [() => false, async () => true] },
  now: { bad: [0, null, 'now', new Date()], good: [() => 0] },
};
const requestTable: typeof verifierTable = {
  verifier: {
    bad: [{}, null, 'verifier', { verifyToken(): void {} }, Object.create(JWETokenVerifier.prototype)],
    good: [],
  },
  jwksPath: { bad: notPath, good: ['/keys', '/', '//x', '/a%2eb;c=d'] },
  requiredClaims: { bad: notTexts, good: [[], ['email', '"odd" name']] },
  requiredScopes: { bad: [...notTexts, ['a b'], ['a"'], ['a\\'], ['é'], ['a\n']], good: [[], ['mcp:read']] },
  anonymous: { bad: notBoolean, good: [true, false] },
  publicPaths: { bad: ['/a', null, {}, new Set(['/a']), ...notPath.map((path) => [path])], good: [[], ['/healthz']] },
  tokenHeader: { bad: ['', 'a b', 'a:', 'é', 'a\n', 1, null, ['a']], good: ['X-Token', 'x_1'] },
  allowedHosts: {
    bad: [
      'mcp.example',
      null,
      {},
      [],
      new Set(['mcp.example']),
      ...[
        '',
        'https://mcp.example',
        'mcp.example:3000',
        'mcp.example/mcp',
        '*.example',
        'a b',
        'é.example',
        1,
        null,
      ].map((host) => [host]),
    ],
    good: [['mcp.example'], ['MCP.example.', 'a_b', '10.0.0.1', '[::1]']],
  },
  resource: { bad: notUrl, good: ['https://mcp.example', 'http://127.0.0.1:3000/mcp?tenant=1'] },
  jwksUri: { bad: notUrl, good: [] },
  authorizationServers: {
    bad: [
      'https://login.example',
      null,
      {},
      [],
      ...[
        ...notUrl,
        'http://login.example',
        'http://10.0.0.1',
        'http://127.0.0.1.evil.example',
        'https://login.example?tenant=1',
        'https://login.example/?',
        'https://user@login.example',
        'https://user:secret@login.example/',
      ].map((url) => [url]),
      ['https://login.example', 'http://login.example'],
    ],
    good: [],
  },
  openidConfiguration: { bad: notBoolean, good: [false] },
  cors: {
    bad: [
      true,
      null,
      '*',
      [],
      {},
      { origin: true },
      { origin: 'https://app.example' },
      { origin: ['*'] },
      { origin: ['null'] },
      { origin: ['app.example'] },
      { origin: ['https://app.example/'] },
      { origin: ['https://App.example'] },
      { origin: ['https://app.example:443'] },
      { origin: [/app/] },
      { origin: null },
      { origin: '*', credentials: true },
      { allowedHeaders: ['x-tenant'] },
      ...['x-tenant', [''], ['a b'], ['a,b'], ['a:'], ['é'], ['a\r\nb'], [1], null, {}].map((allowedHeaders) => ({
        origin: '*',
        allowedHeaders,
      })),
      ...[
        'chrome-extension://',
        'chrome-extension://a/',
        'chrome-extension://a/b',
        'chrome-extension://a?b',
        'chrome-extension://a#b',
        'chrome-extension://a b',
        'chrome-extension://a"b',
        'chrome-extension://a, https://app.example',
        'chrome-extension:a',
        '://a',
        '1a://b',
        'https://a/b',
        'https:// a',
        'HTTPS://app.example',
        'http://app.example:80',
        'https://*.app.example', // a wildcard that would match no page
        'chrome-extension://*',
      ].map((origin) => ({ origin: [origin] })),
      { origins: '*' },
    ],
    good: [
      false,
      { origin: '*' },
      { origin: [] },
      { origin: ['https://app.example', 'http://localhost:5173'] },
      { origin: '*', allowedHeaders: undefined },
      { origin: [], allowedHeaders: [] },
      { origin: '*', allowedHeaders: ['X-Tenant', 'traceparent'] },
      {
        origin: [
          'chrome-extension://abcdefghijklmnopabcdefghijklmnop',
          'moz-extension://0b6a1d5e-1111-4222-8333-444455556666',
          'safari-web-extension://0B6A1D5E-1111-4222-8333-444455556666',
          'vscode-webview://1a2b3c',
          'capacitor://localhost',
          'tauri://localhost:1',
          'app://obsidian.md',
        ],
      },
    ],
  },
  bindSessions: { bad: notBoolean, good: [true, false] },
  onEvent: { bad: ['log', {}, null, true], good: [() => {}] },
};

describe('every option', () => {
  for (const [name, { bad, good }] of Object.entries({ ...verifierTable, ...requestTable })) {
    it(`${name} is checked at construction, and named`, () => {
      const makers = { ...wrappers, ...(Object.hasOwn(verifierTable, name) && { JWETokenVerifier: verifier }) };
      for (const [maker, make] of Object.entries(makers)) {
        for (const value of bad) {
          const options: Loose =
            name === 'keyFile' || name === 'verifier' ? { [name]: value } : { keys, [name]: value };
          refuses(
            () => make(options),
            new RegExp(`"${name}"`),
            `${maker}({ ${name}: ${String(JSON.stringify(value))} })`,
          );
        }
        for (const value of [...good, undefined]) make({ keys, [name === 'keys' ? 'cache' : name]: value });
      }
    });
  }

  it('concurrency, which is gone, is warned of and ignored', async () => {
    const program = `
      import { JWETokenVerifier, withAuth } from 'mcp-auth-middleware';
      const warnings = [];
      process.on('warning', ({ code, message }) => warnings.push([code, message]));
      const keys = JSON.parse(process.env.TEST_KEYS);
      for (const concurrency of [1, '1', null, 8]) {
        new JWETokenVerifier({ keys, concurrency });
        withAuth(() => {}, { keys, concurrency });
      }
      setImmediate(() => console.log(JSON.stringify(warnings.filter(([code]) => code === 'MCP_AUTH_OPTION'))));`;
    const { stdout, stderr } = await run(process.execPath, ['--no-warnings', '--input-type=module', '-e', program], {
      cwd: root,
      env: { TEST_KEYS: JSON.stringify(keys) },
    });
    const warnings: [string, string][] = JSON.parse(stdout || stderr);
    assert.equal(warnings.length, 1, 'once');
    assert.match(warnings[0]?.[1] ?? '', /"concurrency".*UV_THREADPOOL_SIZE/);
  });

  it('is in this table', () => {
    // The message about an unknown option lists the known ones.
    const listed = (make: (options: Loose) => unknown): string[] => {
      try {
        make({ keys, noSuchOption: 1 });
      } catch (error) {
        return (/there are (.*)/.exec(String(error))?.[1] ?? '').split(', ').sort();
      }
      return [];
    };
    assert.deepEqual(listed(verifier), Object.keys(verifierTable).sort());
    assert.deepEqual(
      listed((options) => withAuth(whoami, options)),
      [...Object.keys(verifierTable), ...Object.keys(requestTable)].sort(),
    );
  });

  it('unknown is refused by its name, also when it is undefined or a name of Object', () => {
    const names = [
      'requiredClaim',
      'Audience',
      'key',
      'secret',
      'path',
      'issuer',
      'realm',
      'constructor',
      'toString',
      'hasOwnProperty',
      'valueOf',
      '',
    ];
    for (const [maker, make] of Object.entries({ ...wrappers, JWETokenVerifier: verifier })) {
      for (const name of names) {
        for (const value of [1, undefined])
          refuses(() => make({ keys, [name]: value }), new RegExp(`"${name}"`), `${maker} ${name}`);
      }
      refuses(() => make(JSON.parse('{"__proto__":1}')), /"__proto__"/, maker);
    }
    for (const name of Object.keys(requestTable))
      refuses(() => verifier({ keys, [name]: undefined }), new RegExp(`"${name}"`), `JWETokenVerifier ${name}`);
  });

  it('comes in a plain object: what a class or a prototype says would be dropped', () => {
    class Config {
      get requiredScopes(): string[] {
        return ['admin'];
      }
    }
    const given = [new Config(), Object.assign(new Config(), { keys }), new Map([['keys', keys]])];
    for (const [maker, make] of Object.entries({ ...wrappers, JWETokenVerifier: verifier })) {
      for (const options of [...given, Object.create({ audience: 'here' })])
        refuses(() => make(options), /^options must be a plain object$/, maker);
      make(Object.assign(Object.create(null), { keys }));
      make(runInNewContext('options => ({ ...options })')({ keys })); // of another realm
    }
  });

  it('comes in an object', () => {
    for (const [maker, make] of Object.entries({ ...wrappers, JWETokenVerifier: verifier })) {
      for (const options of [null, 1, 'keys.json', true, [], [keys]])
        refuses(() => make(options), /options/, `${maker} ${JSON.stringify(options)}`);
    }
  });
});

describe('options of a trusted issuer', () => {
  const rows: [name: string, change: Loose][] = [
    ...[...notText.filter((value) => value !== undefined), undefined].map((value): [string, Loose] => [
      'issuer',
      { issuer: value },
    ]),
    ...[
      'https://idp.example/jwks',
      null,
      [],
      1,
      undefined,
      new URL('http://idp.example/jwks'),
      new URL('ftp://127.0.0.1/jwks'),
      new URL('file:///jwks'),
      new URL('http://127.0.0.1.evil.example/'),
      new URL('http://localhost.evil.example/'),
      new URL('https://user:secret@idp.example/'),
      new URL('http://10.0.0.1/'),
    ].map((value): [string, Loose] => ['jwks', { jwks: value }]),
    ...[...notText, [''], ['a', 1]].map((value): [string, Loose] => ['audience', { audience: value }]),
    ...[...notText].map((value): [string, Loose] => ['typ', { typ: value }]),
    ...['ES256', [], ['none'], ['HS256'], ['RS512'], ['ES256', 1], [''], ['es256'], null, {}].map(
      (value): [string, Loose] => ['algorithms', { algorithms: value }],
    ),
    ['jwksUri', { jwksUri: 'https://idp.example' }],
    ['name', { name: undefined }],
    ['constructor', { constructor: 1 }],
  ];
  it('are checked as well', () => {
    for (const [name, change] of rows) {
      const value: unknown = Object.values(change)[0];
      const what = `${name} ${String(value instanceof URL ? value : JSON.stringify(change))}`;
      for (const make of [...Object.values(wrappers), verifier])
        refuses(
          () => make({ keys, audience: 'a', trustedIssuers: [{ ...issuer, ...change }] }),
          new RegExp(`trustedIssuers.*"${name}"`),
          what,
        );
    }
    for (const change of [
      {},
      { audience: 'b' },
      { audience: ['b', 'c'] },
      { algorithms: ['RS256', 'EdDSA', 'Ed25519', 'ES256', 'PS256'] },
      { typ: 'at+jwt' },
      { typ: undefined },
      { jwks: async () => issuer.jwks },
      ...['https://idp.example/', 'http://localhost:1/', 'http://127.0.0.1:1/', 'http://[::1]:1/'].map((url) => ({
        jwks: new URL(url),
      })),
    ]) {
      verifier({ keys, audience: 'a', trustedIssuers: [{ ...issuer, ...change }] });
    }
    refuses(
      () => verifier({ keys, audience: 'a', trustedIssuers: [issuer, { ...issuer }] }),
      /"trustedIssuers".*twice/,
      'an issuer twice',
    );
  });
});

describe('options of producers', () => {
  const refusesAsync = (made: () => Promise<unknown>, name: string, what: string): Promise<void> =>
    assert.rejects(made, (error) => {
      assert.ok(error instanceof KeyError, `${what}: ${String(error)}`);
      assert.equal(error.code, 'option', what);
      assert.ok(error.message.includes(`"${name}"`), `${what}: ${error.message}`);
      return true;
    });
  const NAMES = ['ttl', 'bits', 'signing', 'expires', 'expiresin', 'Sign', 'alg ', 'constructor', '__proto__', ''];
  const withOption = (name: string, value: unknown): object => Object.fromEntries([[name, value]]);

  it('of encryptToken are known ones: a typo must not give an unsigned or a longer-lived token', async () => {
    const { publicJwk } = await keyPair();
    const mint = (options: unknown): Promise<string> =>
      Reflect.apply(encryptToken, undefined, [{}, publicJwk, options]);
    for (const name of [...NAMES, 'signed', 'key', 'issuer', 'audience', 'exp', 'alg', 'kid'])
      await refusesAsync(() => mint(withOption(name, 60)), name, name);
    await refusesAsync(() => mint({ expiresIn: 60, ttl: undefined }), 'ttl', 'undefined');
    for (const options of [null, 60, '1h', [], true])
      await assert.rejects(mint(options), { name: 'KeyError', code: 'option' }, JSON.stringify(options));
    for (const expiresIn of [0, -1, '60', Number.NaN, Infinity, true, {}])
      await assert.rejects(mint({ expiresIn }), { name: 'TypeError', message: /expiresIn/ }, String(expiresIn));
    for (const options of [
      undefined,
      {},
      { expiresIn: undefined },
      { expiresIn: null },
      { expiresIn: 0.5 },
      { sign: undefined },
    ])
      assert.match(await mint(options), /^[\w-]+(\.[\w-]+){4}$/);
  });

  it('of generateKeyPair are known ones, of known values', async () => {
    const generate = (options: unknown): Promise<unknown> => Reflect.apply(generateKeyPair, undefined, [options]);
    for (const name of [...NAMES, 'modulus', 'length', 'kid', 'use', 'publicExponent'])
      await refusesAsync(() => generate(withOption(name, 2048)), name, name);
    for (const modulusLength of [1024, 2047, 8192, '2048', Number.NaN, null, 2048.5])
      await assert.rejects(generate({ modulusLength }), { name: 'KeyError', code: 'option', message: /modulusLength/ });
    for (const alg of ['RSA1_5', 'RS256', '', null, 1, 'rsa-oaep'])
      await assert.rejects(generate({ modulusLength: 2048, alg }), {
        name: 'KeyError',
        code: 'option',
        message: /alg/,
      });
    for (const options of [null, 2048, '4096', []])
      await assert.rejects(generate(options), { name: 'KeyError', code: 'option' });
  });
});

describe('options that exclude each other', () => {
  it('verifier and any option of it', () => {
    const given = new JWETokenVerifier({ keys });
    const values: Loose = {
      keyFile: 'x',
      keys,
      trustedIssuers: [issuer],
      audience: 'a',
      clockTolerance: 1,
      maxTokenAge: 1,
      requireExp: true,
      claimsMember: 'data',
      cache: false,
      maxPending: 1,
      isRevoked: () => false,
      now: () => 0,
    };
    assert.deepEqual(Object.keys(values).sort(), Object.keys(verifierTable).sort());
    for (const [maker, make] of Object.entries(wrappers)) {
      for (const [name, value] of Object.entries(values)) {
        refuses(
          () => make({ verifier: given, [name]: value }),
          new RegExp(`"verifier".*"${name}"`),
          `${maker} ${name}`,
        );
        make({ verifier: given, [name]: undefined });
      }
      make({ verifier: given, requiredClaims: ['email'], anonymous: true });
    }
  });

  it('and those that need each other', () => {
    for (const make of [...Object.values(wrappers), verifier]) {
      refuses(() => make({ keys, keyFile: 'x' }), /"keys".*"keyFile"/, 'keys and keyFile');
      refuses(
        () => make({ keys, audience: 'a', trustedIssuers: [issuer], requireExp: false }),
        /"requireExp".*"trustedIssuers"/,
        'requireExp',
      );
      refuses(
        () => make({ keys, trustedIssuers: [issuer] }),
        /"trustedIssuers".*"audience".*"resource"/,
        'no audience',
      );
      refuses(
        () =>
          make({
            keys,
            trustedIssuers: [
              { ...issuer, audience: 'a' },
              { ...issuer, issuer: 'https://other.example' },
            ],
          }),
        /"trustedIssuers".*"audience"/,
        'no audience of one',
      );
      make({ keys, trustedIssuers: [{ ...issuer, audience: 'a' }] });
      make({ keys, audience: 'a', trustedIssuers: [issuer], requireExp: true });
    }
    for (const make of Object.values(wrappers)) {
      for (const [name, value] of [
        ['openidConfiguration', true],
        ['jwksUri', 'https://mcp.example/keys'],
        ['authorizationServers', ['https://login.example']],
      ] as const) {
        refuses(() => make({ keys, [name]: value }), new RegExp(`"${name}".*"resource"`), name);
        make({ keys, resource: 'https://mcp.example', [name]: value });
      }
      for (const server of ['http://127.0.0.1:9/', 'http://localhost', 'http://[::1]:1/a', 'https://login.example/a/b'])
        make({ keys, resource: 'https://mcp.example', authorizationServers: [server] });
      make({ keys, trustedIssuers: [issuer], resource: 'https://mcp.example' });
      make({
        keys,
        openidConfiguration: true,
        resource: 'https://mcp.example',
        authorizationServers: ['https://login.example'],
      });
    }
  });

  it('nor is a verifier one whose methods somebody has replaced: the middleware would pass them by', () => {
    const revoked = (): Promise<never> => Promise.reject(new Error('revoked'));
    class Strict extends JWETokenVerifier {
      override authenticate = revoked;
    }
    const replaced = ['authenticate', 'verifyToken'].map((name) =>
      Object.assign(new JWETokenVerifier({ keys }), { [name]: revoked }),
    );
    const advice = /^option "verifier" must be .*; isRevoked is for checks of your own$/;
    for (const [maker, make] of Object.entries(wrappers))
      for (const given of [new Strict({ keys }), ...replaced]) refuses(() => make({ verifier: given }), advice, maker);
    class Named extends JWETokenVerifier {
      name = 'mine';
    }
    for (const make of Object.values(wrappers)) make({ verifier: new Named({ keys }) });
  });

  it('nor is a handler anything but a function', () => {
    for (const handler of [undefined, null, {}, 'handler', { keys }]) {
      refuses(() => withAuth(handler as typeof whoami, { keys }), /withAuth/, String(handler));
      refuses(() => withAuthFetch(handler as unknown as () => Response, { keys }), /withAuthFetch/, String(handler));
    }
  });
});

describe('without a key', () => {
  it('nothing starts, and the message says what to do', () => {
    for (const make of [...Object.values(wrappers), verifier]) {
      for (const options of [{}, undefined, { keyFile: undefined }]) {
        assert.throws(
          () => make(options),
          (error) =>
            error instanceof KeyError &&
            error.code === 'missing' &&
            /MCP_KEY_FILE_PATH/.test(error.message) &&
            /mcp-auth-middleware generate/.test(error.message),
        );
      }
    }
  });

  it('but the environment may name the file; keyFile and keys come before it', async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-test-'));
    t.after(() => {
      delete process.env.MCP_KEY_FILE_PATH;
      rmSync(folder, { recursive: true });
    });
    const other = (await keyPair('other')).privateJwk;
    const [file, otherFile] = [join(folder, 'a.json'), join(folder, 'b.json')];
    writeFileSync(file, JSON.stringify(keys), { mode: 0o600 });
    writeFileSync(otherFile, JSON.stringify({ keys: [other] }), { mode: 0o600 });
    process.env.MCP_KEY_FILE_PATH = file;
    const kid = (options?: AuthOptions): unknown => new JWETokenVerifier(options).getJwks().keys[0]?.kid;
    assert.equal(kid(), keys.keys[0]?.kid);
    assert.equal(kid({ keyFile: otherFile }), other.kid);
    assert.equal(kid({ keys: { keys: [other] } }), other.kid);
    process.env.MCP_KEY_FILE_PATH = join(folder, 'none');
    assert.throws(
      () => new JWETokenVerifier(),
      (error) => error instanceof KeyError && error.code === 'missing',
    );
    process.env.MCP_KEY_FILE_PATH = '';
    assert.throws(
      () => new JWETokenVerifier(),
      (error) => error instanceof KeyError && error.code === 'missing',
    );
  });
});

describe('options are read once', () => {
  it('what is changed in them afterwards changes nothing', async (t) => {
    const requiredClaims = ['email'];
    const requiredScopes = ['read'];
    const publicPaths = ['/open'];
    const cors = { origin: ['https://app.example'] };
    const audience = ['a'];
    const set = structuredClone(keys);
    const options: AuthOptions = {
      keys: set,
      requiredClaims,
      requiredScopes,
      publicPaths,
      cors,
      audience,
      resource: 'https://mcp.example',
    };
    const { port } = await serve(t, withAuth(whoami, options));
    requiredClaims.length = 0;
    requiredScopes.length = 0;
    publicPaths.push('/mcp');
    cors.origin.push('https://evil.example');
    audience.push('b');
    set.keys.length = 0;
    Object.assign(options, {
      anonymous: true,
      bindSessions: false,
      requiredClaims: [],
      requiredScopes: [],
      cors: { origin: '*' },
      resource: 'https://evil.example',
    });
    const answers = await Promise.all(
      [
        {},
        { headers: await bearer({ aud: 'a' }) },
        { headers: await bearer({ aud: 'b', email: 'e', scope: 'read' }) },
        { headers: await bearer({ aud: 'a', email: 'e', scope: 'read' }) },
        { headers: { origin: 'https://evil.example' } },
        { path: '/open' },
      ].map((request) => ask(port, request)),
    );
    assert.deepEqual(
      answers.map(({ status }) => status),
      [401, 403, 401, 200, 403, 200],
    );
    assert.match(
      answers[0]?.headers['www-authenticate'] ?? '',
      /scope="read", resource_metadata="https:\/\/mcp\.example\//,
    );
    assert.equal(answers[0]?.headers.vary, 'Origin');
  });
});

describe('options, once read,', () => {
  it('take nothing from a polluted prototype', async (t) => {
    const pollution: Loose = {
      anonymous: true,
      publicPaths: ['/mcp'],
      cors: { origin: '*' },
      requiredClaims: ['email'],
      tokenHeader: 'x-evil',
      jwksPath: '/evil',
      resource: 'https://evil.example',
      bindSessions: false,
    };
    const names = Object.keys(pollution);
    const { port } = await guard(t);
    Object.assign(Object.prototype, pollution);
    try {
      const later = await guard(t);
      for (const target of [port, later.port]) {
        assert.equal((await ask(target)).status, 401);
        assert.equal((await ask(target)).headers['access-control-allow-origin'], undefined);
        assert.equal((await ask(target, { headers: await bearer({ sub: '1' }) })).status, 200);
        assert.equal((await ask(target, { path: '/.well-known/jwks.json' })).status, 200);
      }
    } finally {
      for (const name of names) Reflect.deleteProperty(Object.prototype, name);
    }
  });

  it('do not change when the object given does', async (t) => {
    const cors: { origin: '*' | string[] } = { origin: ['https://app.example'] };
    const { port } = await serve(
      t,
      withAuth(
        (_req, res) => {
          res.end();
        },
        { keys: await serverKeys(), cors },
      ),
    );
    cors.origin = '*';
    assert.equal((await ask(port)).headers['access-control-allow-origin'], undefined);
  });
});
