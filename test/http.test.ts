// What a request gets: every row of the contract with its exact status, header fields and body, and the order of the rows.
import assert from 'node:assert/strict';
import { constants, createCipheriv, createPublicKey, publicEncrypt, randomBytes } from 'node:crypto';
import { Agent } from 'node:http';
import { describe, it } from 'node:test';
import { type AuthOptions, compactEncrypt, getUser, publicJwks } from 'mcp-auth-middleware';
import { keyPair } from './support/support.js';
import { type Answer, type Ask, ask, bearer, exchange, guard, mint, serverKeys } from './support/wire.js';

const RESOURCE = 'https://mcp.example/api/mcp';
const JWKS = '/.well-known/jwks.json';
const PRM = '/.well-known/oauth-protected-resource';
const OPENID = '/.well-known/openid-configuration';
const METADATA = `resource_metadata="https://mcp.example${PRM}/api/mcp"`;
const ALLOWED = 'GET, HEAD, OPTIONS';

type Fields = Record<string, string>;

const publicDocument = (body: object): Answer => {
  const text = JSON.stringify(body);
  const headers = {
    'access-control-allow-origin': '*',
    'cache-control': 'public, max-age=300',
    'content-length': String(text.length),
    'content-type': 'application/json',
  };
  return { status: 200, headers, body: text };
};
const refusal = (
  status: number,
  error: string,
  description: string,
  headers: Fields = {},
  more: object = {},
): Answer => {
  const body = JSON.stringify({ error, error_description: description, ...more });
  return {
    status,
    headers: {
      'cache-control': 'no-store',
      'content-length': String(body.length),
      'content-type': 'application/json',
      ...headers,
    },
    body,
  };
};
/** A refusal whose challenge says the same as its body. */
const challenged = (status: number, error: string, description: string, parameters = '', more: object = {}): Answer =>
  refusal(
    status,
    error,
    description,
    { 'www-authenticate': `Bearer error="${error}", error_description="${description}"${parameters}` },
    more,
  );

const noToken = (challenge = 'Bearer'): Answer =>
  refusal(401, 'invalid_token', 'An access token is required', { 'www-authenticate': challenge });
const badToken = (description = 'The access token is invalid', parameters = ''): Answer =>
  challenged(401, 'invalid_token', description, parameters);
const lacking = (missing: string[], parameters = ''): Answer =>
  challenged(403, 'insufficient_scope', 'The access token lacks a required claim or scope', parameters, { missing });
const badOrigin = refusal(
  403,
  'invalid_request',
  'This Origin is not allowed; the server sets which ones are with cors.origin',
);
const twoTokens = challenged(400, 'invalid_request', 'More than one access token was sent');
const badMethod = refusal(405, 'invalid_request', 'This document is read with GET or HEAD', {
  'access-control-allow-origin': '*',
  allow: ALLOWED,
});
const documentPreflight: Answer = {
  status: 204,
  body: '',
  headers: {
    'access-control-allow-origin': '*',
    'access-control-allow-methods': ALLOWED,
    'access-control-allow-headers': '*',
    'access-control-max-age': '600',
    allow: ALLOWED,
  },
};
const unavailable = (description: string): Answer =>
  refusal(503, 'temporarily_unavailable', description, { 'retry-after': '1' });
/** The handler's answer: the claims it saw. */
const passed = (claims: object): Answer => {
  const body = JSON.stringify(claims);
  return {
    status: 200,
    headers: { 'content-length': String(Buffer.byteLength(body)), 'content-type': 'application/json' },
    body,
  };
};
const headOf = ({ status, headers }: Answer): Answer => ({ status, headers, body: '' });

type Row = [name: string, request: Ask, expected: Answer];

/** Rows against one server. They are computed late, for they need keys. */
function table(name: string, options: AuthOptions | (() => Promise<AuthOptions>), rows: () => Promise<Row[]>): void {
  it(name, async (t) => {
    const { port } = await guard(t, typeof options === 'function' ? await options() : options);
    for (const [what, request, expected] of await rows()) {
      await t.test(what, async () => assert.deepEqual(await ask(port, request), expected));
    }
  });
}

const now = (): number => Math.floor(Date.now() / 1000);
const serverJwks = async (): Promise<object> => publicJwks(await serverKeys());

describe('the public documents', () => {
  const reads = (path: string, expected: Answer): Row[] => [
    [`GET ${path}`, { path }, expected],
    [`GET ${path} with a query`, { path: `${path}?v=1` }, expected],
    [`HEAD ${path}`, { path, method: 'HEAD' }, headOf(expected)],
    [`OPTIONS ${path}, a preflight or not`, { path, method: 'OPTIONS' }, documentPreflight],
    [
      `OPTIONS ${path} as a browser asks`,
      { path, method: 'OPTIONS', headers: { origin: 'https://evil.example', 'access-control-request-method': 'GET' } },
      documentPreflight,
    ],
    ...['POST', 'PUT', 'PATCH', 'DELETE', 'PROPFIND'].map((method): Row => [
      `${method} ${path} names the methods there are`,
      { path, method },
      badMethod,
    ]),
    [`${path} to any page, whatever its Origin`, { path, headers: { origin: 'https://evil.example' } }, expected],
    [`${path} to those who bring a bad token`, { path, headers: { authorization: 'Bearer x' } }, expected],
  ];

  table('the key set alone, when no resource is set', {}, async () => [
    ...reads(JWKS, publicDocument(await serverJwks())),
    ...[PRM, `${PRM}/api/mcp`, OPENID].map((path): Row => [`${path} is a path as any other`, { path }, noToken()]),
  ]);

  table('at its own path', { jwksPath: '/keys' }, async () => [
    ...reads('/keys', publicDocument(await serverJwks())),
    [`nothing at ${JWKS}`, { path: JWKS }, noToken()],
  ]);

  const prm = { resource: RESOURCE, jwks_uri: `https://mcp.example${JWKS}`, bearer_methods_supported: ['header'] };
  table('the resource metadata at both of its paths (RFC 9728 §3.1)', { resource: RESOURCE }, async () => [
    ...reads(PRM, publicDocument(prm)),
    ...reads(`${PRM}/api/mcp`, publicDocument(prm)),
    [`nothing at ${PRM}/api`, { path: `${PRM}/api` }, noToken(`Bearer ${METADATA}`)],
    [`nothing at ${PRM}/`, { path: `${PRM}/` }, noToken(`Bearer ${METADATA}`)],
    ['no OpenID configuration unless asked for', { path: OPENID }, noToken(`Bearer ${METADATA}`)],
  ]);

  const full: AuthOptions = {
    resource: RESOURCE,
    authorizationServers: ['https://login.example'],
    jwksPath: '/keys',
    openidConfiguration: true,
    requiredClaims: ['email'],
    requiredScopes: ['mcp:read', 'mcp:write'],
  };
  table('the resource metadata and the OpenID configuration with all there is', full, async () => [
    ...reads(
      PRM,
      publicDocument({
        resource: RESOURCE,
        jwks_uri: 'https://mcp.example/keys',
        authorization_servers: ['https://login.example'],
        bearer_methods_supported: ['header'],
        scopes_supported: ['mcp:read', 'mcp:write'],
      }),
    ),
    ...reads(
      OPENID,
      publicDocument({
        issuer: 'https://mcp.example',
        jwks_uri: 'https://mcp.example/keys',
        scopes_supported: ['email', 'mcp:read', 'mcp:write'],
      }),
    ),
  ]);

  table('the metadata of a resource at the root once', { resource: 'https://mcp.example' }, async () => [
    ['at the well-known path', { path: PRM }, publicDocument({ ...prm, resource: 'https://mcp.example' })],
    ['in the challenge', {}, noToken(`Bearer resource_metadata="https://mcp.example${PRM}"`)],
  ]);

  it('publish the active key and never a private member', async (t) => {
    const [current, next, old] = [
      (await keyPair('server')).privateJwk,
      (await keyPair('next')).privateJwk,
      (await keyPair('old')).privateJwk,
    ];
    const keys = {
      keys: [
        { ...old, iat: now() - 200 },
        { ...current, iat: now() - 100 },
        { ...next, nbf: now() + 100 },
      ],
    };
    const { port } = await guard(t, { keys, resource: RESOURCE, openidConfiguration: true });
    const { kty, n, e, kid, alg, use } = current;
    assert.deepEqual(JSON.parse((await ask(port, { path: JWKS })).body), { keys: [{ kty, n, e, kid, alg, use }] });
    for (const path of [JWKS, PRM, OPENID, '/mcp']) {
      const answer = JSON.stringify(await ask(port, { path }));
      for (const { d, p, q, dp, dq, qi } of [current, next, old]) {
        for (const member of [d, p, q, dp, dq, qi]) assert(!answer.includes(member), path);
      }
    }
  });
});

describe('who gets to the handler', () => {
  const claims = { iat: now(), exp: now() + 600, sub: '1', name: 'Zoë' }; // in the order of encryptToken
  table('by default', {}, async () => [
    ['no token', {}, noToken()],
    ['HEAD without a token', { method: 'HEAD' }, headOf(noToken())],
    ['another scheme', { headers: { authorization: 'Basic QTpC' } }, noToken()],
    ['a token in a field of its own name', { headers: { 'x-token': await mint(claims) } }, noToken()],
    ['a valid token', { headers: await bearer(claims) }, passed(claims)],
    ['a valid token, POST', { method: 'POST', body: '{}', headers: await bearer(claims) }, passed(claims)],
    [
      'HEAD with a valid token',
      { method: 'HEAD', headers: await bearer(claims) },
      { status: 200, headers: { 'content-type': 'application/json' }, body: '' },
    ],
    ['a bad token', { headers: { authorization: 'Bearer x' } }, badToken()],
    ['HEAD with a bad token', { method: 'HEAD', headers: { authorization: 'Bearer x' } }, headOf(badToken())],
    ['OPTIONS that asks nothing', { method: 'OPTIONS' }, noToken()],
    ['OPTIONS with a valid token', { method: 'OPTIONS', headers: await bearer(claims) }, passed(claims)],
    [
      'an Origin, when none is allowed',
      { headers: { ...(await bearer(claims)), origin: 'https://app.example' } },
      badOrigin,
    ],
    ['the Origin null', { headers: { ...(await bearer(claims)), origin: 'null' } }, badOrigin],
    [
      'an Origin that agrees with Host',
      { headers: { ...(await bearer(claims)), host: 'rebound.example', origin: 'http://rebound.example' } },
      badOrigin,
    ],
  ]);

  table('anonymous', { anonymous: true, requiredClaims: ['email'], requiredScopes: ['read'] }, async () => [
    ['no token', {}, passed({})],
    ['an empty field', { headers: { authorization: '' } }, passed({})],
    ['another scheme', { headers: { authorization: 'Basic QTpC' } }, passed({})],
    [
      'a scheme without a token is a bad token',
      { headers: { authorization: 'Bearer' } },
      badToken(undefined, ', scope="read"'),
    ],
    ['a bad token', { headers: { authorization: 'Bearer x' } }, badToken(undefined, ', scope="read"')],
    [
      'what is required of a token',
      { headers: await bearer({ email: 'a@b' }) },
      lacking(['read'], ', scope="email read"'),
    ],
    [
      'a token with it',
      { headers: await bearer({ ...claims, email: 'a@b', scope: 'read' }) },
      passed({ ...claims, email: 'a@b', scope: 'read' }),
    ],
  ]);

  const publicPaths = ['/healthz', '/a%2fb', '//twice', '/a/../b', '/Caf%C3%A9', '/x;y=1', '/'];
  table('public paths, exactly', { publicPaths }, async () => [
    ...publicPaths.map((path): Row => [path, { path }, passed({})]),
    ...publicPaths.map((path): Row => [`${path}?query`, { path: `${path}?a=/&b=//` }, passed({})]),
    ['a bad token is ignored', { path: '/healthz', headers: { authorization: 'Bearer x' } }, passed({})],
    ['a good token is ignored', { path: '/healthz', headers: await bearer(claims) }, passed({})],
    ['two tokens are ignored', { path: '/healthz', headers: { authorization: ['Bearer x', 'Bearer y'] } }, passed({})],
    ...[
      '/healthz/',
      '//healthz',
      '/healthz;',
      '/Healthz',
      '/health%7a',
      '/./healthz',
      '/x/../healthz',
      '/healthz/..',
      '/a/b',
      '/b',
      '/a%2Fb',
      '/twice',
      '/Caf%c3%a9',
      '/x',
    ].map((path): Row => [`not ${path}`, { path }, noToken()]),
  ]);

  const required: AuthOptions = {
    requiredClaims: ['email', 'org'],
    requiredScopes: ['mcp:read', 'mcp:write'],
    resource: RESOURCE,
  };
  const more = `, scope="email org mcp:read mcp:write", ${METADATA}`;
  table('required claims and scopes', required, async () => [
    ['no token: the scopes are in the challenge', {}, noToken(`Bearer scope="mcp:read mcp:write", ${METADATA}`)],
    [
      'a bad token: as well',
      { headers: { authorization: 'Bearer x' } },
      badToken(undefined, `, scope="mcp:read mcp:write", ${METADATA}`),
    ],
    ['nothing of it', { headers: await bearer({}) }, lacking(['email', 'org', 'mcp:read', 'mcp:write'], more)],
    [
      'a claim that is null',
      { headers: await bearer({ email: null, org: 'o', scope: 'mcp:read mcp:write' }) },
      lacking(['email'], more),
    ],
    [
      'a scope that only begins so',
      { headers: await bearer({ email: 'e', org: 'o', scope: 'mcp:read mcp:writes' }) },
      lacking(['mcp:write'], more),
    ],
    [
      'a scope in other case',
      { headers: await bearer({ email: 'e', org: 'o', scope: 'mcp:read MCP:WRITE' }) },
      lacking(['mcp:write'], more),
    ],
    [
      'scopes that are no string',
      { headers: await bearer({ email: 'e', org: 'o', scope: { 'mcp:read': true }, scp: 7 }) },
      lacking(['mcp:read', 'mcp:write'], more),
    ],
  ]);

  it('takes a claim that is false, zero or empty as present, and scopes in all three forms', async (t) => {
    const { port } = await guard(t, required);
    for (const scopes of [
      { scope: 'mcp:write x  mcp:read' },
      { scp: 'mcp:read mcp:write' },
      { scp: ['mcp:write', 'mcp:read'] },
    ]) {
      for (const email of ['', false, 0]) {
        const { status } = await ask(port, { headers: await bearer({ email, org: [], ...scopes }) });
        assert.equal(status, 200, JSON.stringify({ email, scopes }));
      }
    }
  });

  it('takes no claim from a prototype', async (t) => {
    const { port } = await guard(t, { requiredClaims: ['constructor', '__proto__', 'toString'] });
    assert.deepEqual(JSON.parse((await ask(port, { headers: await bearer({ sub: '1' }) })).body).missing, [
      'constructor',
      '__proto__',
      'toString',
    ]);
    const token = compactEncrypt(
      Buffer.from('{"constructor":1,"__proto__":2,"toString":3}'),
      (await keyPair()).publicJwk,
    );
    assert.equal((await ask(port, { headers: { authorization: `Bearer ${token}` } })).status, 200);
  });

  it('names a required claim that cannot stand in a challenge in the body only', async (t) => {
    const { port } = await guard(t, { requiredClaims: ['"quoted"', 'first name', 'https://ns.example/org', 'größe'] });
    const { headers, body } = await ask(port, { headers: await bearer({}) });
    assert.match(headers['www-authenticate'] ?? '', /, scope="https:\/\/ns\.example\/org"$/);
    assert.deepEqual(JSON.parse(body).missing, ['"quoted"', 'first name', 'https://ns.example/org', 'größe']);
  });

  table('another field for the token', { tokenHeader: 'X-MCP-Token' }, async () => [
    ['Authorization is not read', { headers: await bearer(claims) }, noToken()],
    ['the field is', { headers: { 'x-mcp-token': (await bearer(claims)).authorization } }, passed(claims)],
    ['in any case', { headers: { 'X-Mcp-ToKeN': (await bearer(claims)).authorization } }, passed(claims)],
    [
      'with whatever is in Authorization',
      { headers: { authorization: 'Basic QTpC', 'x-mcp-token': (await bearer(claims)).authorization } },
      passed(claims),
    ],
    ['with the same syntax', { headers: { 'x-mcp-token': await mint(claims) } }, noToken()],
    ['once', { headers: { 'x-mcp-token': [(await bearer(claims)).authorization, 'Bearer x'] } }, twoTokens],
  ]);

  const times: AuthOptions = { clockTolerance: 0, audience: ['https://mcp.example', 'urn:mcp'], maxTokenAge: 300 };
  const aud = 'urn:mcp';
  table('what is told of an authentic token', times, async () => [
    [
      'expired',
      { headers: await bearer({ aud, iat: now() - 100, exp: now() - 1 }) },
      badToken('The access token has expired'),
    ],
    [
      'too old',
      { headers: await bearer({ aud, iat: now() - 400, exp: now() + 100 }) },
      badToken('The access token has expired'),
    ],
    [
      'not yet valid',
      { headers: await bearer({ aud, nbf: now() + 100 }) },
      badToken('The access token is not valid yet'),
    ],
    [
      'issued in the future',
      { headers: await bearer({ aud, iat: now() + 100, exp: now() + 200 }) },
      badToken('The access token is not valid yet'),
    ],
    ['without an audience', { headers: await bearer({}) }, badToken('The access token is for another audience')],
    [
      'for another audience',
      { headers: await bearer({ aud: ['https://mcp.example/', 'urn:MCP'] }) },
      badToken('The access token is for another audience'),
    ],
  ]);

  table('a resource is the audience of encrypted tokens that name one', { resource: RESOURCE }, async () => [
    ['none', { headers: await bearer(claims) }, passed(claims)],
    [
      'this',
      { headers: await bearer({ ...claims, aud: ['x', RESOURCE] }) },
      passed({ ...claims, aud: ['x', RESOURCE] }),
    ],
    [
      'another',
      { headers: await bearer({ ...claims, aud: 'https://mcp.example/' }) },
      badToken('The access token is for another audience', `, ${METADATA}`),
    ],
  ]);

  table('the origin of the resource, without cors', { resource: RESOURCE }, async () => [
    ['is welcome', { headers: { ...(await bearer(claims)), origin: 'https://mcp.example' } }, passed(claims)],
    ...[
      'http://mcp.example',
      'https://mcp.example:8443',
      'https://mcp.example.evil.example',
      'https://MCP.example',
      'https://mcp.example/',
      'null',
      '',
    ].map((origin): Row => [`not "${origin}"`, { headers: { origin } }, badOrigin]),
  ]);
});

it('what the last request on a socket brought is judged again, and nothing like it passes for it', async (t) => {
  const iat = Math.floor(Date.now() / 1000);
  let now = iat;
  const { port } = await guard(t, { now: () => now, clockTolerance: 0 }, (_req, res) => {
    res.end(String(getUser().sub));
  });
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  const sockets = new Set<object>();
  agent.on('free', (socket) => sockets.add(socket));
  const [ada, bob] = [await mint({ sub: 'ada', iat, exp: iat + 60 }), await mint({ sub: 'bob', iat, exp: iat + 600 })];
  const get = async (authorization?: string): Promise<string> => {
    const { status, body } = await ask(port, {
      agent,
      ...(authorization !== undefined && { headers: { authorization } }),
    });
    return status === 200 ? body : String(status);
  };
  for (let i = 0; i < 3; i += 1) assert.equal(await get(`Bearer ${ada}`), 'ada');
  const others: [field: string | undefined, expected: string][] = [
    [undefined, '401'],
    [`Basic ${ada}`, '401'],
    [`Bearer ${ada}A`, '401'],
    [`Bearer ${ada.slice(0, -1)}`, '401'],
    [`Bearer ${ada}, Bearer ${ada}`, '401'],
    [`bearer  ${ada}`, 'ada'],
    [`Bearer ${bob}`, 'bob'],
    [`Bearer ${bob}`, 'bob'],
    [`Bearer ${ada}`, 'ada'],
  ];
  for (const [field, expected] of others) assert.equal(await get(field), expected, field?.slice(0, 8) ?? 'nothing');
  now = iat + 60;
  assert.equal(await get(`Bearer ${ada}`), '401');
  assert.equal(await get(`Bearer ${bob}`), 'bob');
  assert.equal(sockets.size, 1);
});

describe('a bad token', () => {
  /** A JWE whose header, content encryption key and parts are the test's. */
  async function forge({
    header = {},
    cek = randomBytes(32),
    oaepHash = 'sha256',
    oaepLabel,
    padding = constants.RSA_PKCS1_OAEP_PADDING,
    seal = cek,
    plaintext = '{}',
  }: {
    header?: object;
    cek?: Buffer;
    oaepHash?: string;
    oaepLabel?: Buffer;
    padding?: number;
    seal?: Buffer;
    plaintext?: string | Buffer;
  } = {}): Promise<string> {
    const { publicJwk } = await keyPair();
    const aad = Buffer.from(
      JSON.stringify({ alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: publicJwk.kid, ...header }),
    ).toString('base64url');
    const key = createPublicKey({ key: { kty: 'RSA', n: publicJwk.n, e: publicJwk.e }, format: 'jwk' });
    const encryptedKey = publicEncrypt(
      { key, padding, ...(padding === constants.RSA_PKCS1_OAEP_PADDING && { oaepHash, oaepLabel }) },
      cek,
    );
    const iv = randomBytes(12);
    const cipher = createCipheriv('aes-256-gcm', seal, iv, { authTagLength: 16 }).setAAD(Buffer.from(aad));
    const ciphertext = Buffer.concat([cipher.update(plaintext), cipher.final()]);
    return [aad, ...[encryptedKey, iv, ciphertext, cipher.getAuthTag()].map((part) => part.toString('base64url'))].join(
      '.',
    );
  }
  const header = (value: object | string): string =>
    Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');
  const flip = (text: string, at: number): string =>
    text.slice(0, at) + (text[at] === 'A' ? 'B' : 'A') + text.slice(at + 1);

  async function badTokens(): Promise<Record<string, string>> {
    const { publicJwk, privateJwk } = await keyPair();
    const stranger = (await keyPair('stranger')).publicJwk;
    const good = await mint({ sub: '1' });
    const [h = '', k = '', iv = '', c = '', tag = ''] = good.split('.');
    const base = { alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: publicJwk.kid };
    const withHeader = (value: object | string): string => [header(value), k, iv, c, tag].join('.');
    const plain = (text: string | Buffer, more = {}): string => compactEncrypt(Buffer.from(text), publicJwk, more);
    return {
      nothing: '',
      'one letter': 'x',
      dots: '....',
      'four parts': [h, k, iv, c].join('.'),
      'six parts': `${good}.`,
      'a JWT': `${header({ alg: 'none' })}.e30.`,
      padding: `${good}==`,
      'another alphabet': `${h}.${k}.${iv}.${c}.++++++++++++++++++++++`,
      'a character that is not ASCII': `${good}\xe9`,
      'a stray bit': `${good.slice(0, -1)}${String.fromCharCode(good.charCodeAt(good.length - 1) + 1)}`,
      'a header that is no JSON': withHeader('{'),
      'a header that is an array': withHeader('[]'),
      'a header with a BOM': withHeader(`\ufeff${JSON.stringify(base)}`),
      ...Object.fromEntries(
        [
          'none',
          'dir',
          'RSA1_5',
          'RSA-OAEP',
          'RSA-OAEP-512',
          'A256KW',
          'rsa-oaep-256',
          'RS256',
          'HS256',
          '',
          1,
          null,
        ].map((alg) => [`alg ${alg}`, withHeader({ ...base, alg })]),
      ),
      ...Object.fromEntries(
        ['A128GCM', 'A256CBC-HS512', 'a256gcm', '', null].map((enc) => [`enc ${enc}`, withHeader({ ...base, enc })]),
      ),
      zip: await forge({ header: { zip: 'DEF' } }),
      crit: await forge({ header: { crit: ['exp'] } }),
      'an empty crit': await forge({ header: { crit: [] } }),
      'an unknown kid': await forge({ header: { kid: 'other' } }),
      'a kid that is a number': await forge({ header: { kid: 1 } }),
      'a kid that is null': await forge({ header: { kid: null } }),
      'a kid of a prototype': await forge({ header: { kid: '__proto__' } }),
      'no encrypted key': [h, '', iv, c, tag].join('.'),
      'a short encrypted key': [h, k.slice(0, -4), iv, c, tag].join('.'),
      'a long encrypted key': [h, `${k}AAAA`, iv, c, tag].join('.'),
      'an encrypted key of zeros': [h, 'A'.repeat(k.length), iv, c, tag].join('.'),
      'a short IV': [h, k, iv.slice(4), c, tag].join('.'),
      'a short tag': [h, k, iv, c, tag.slice(0, 16)].join('.'),
      'a 4-octet tag': [h, k, iv, c, tag.slice(0, 6)].join('.'),
      'a changed encrypted key': [h, flip(k, 40), iv, c, tag].join('.'),
      'a changed IV': [h, k, flip(iv, 3), c, tag].join('.'),
      'a changed ciphertext': [h, k, iv, flip(c, 3), tag].join('.'),
      'a changed tag': [h, k, iv, c, flip(tag, 3)].join('.'),
      'another key under this kid': compactEncrypt(Buffer.from('{}'), { ...stranger, kid: publicJwk.kid }),
      'another key': compactEncrypt(Buffer.from('{}'), stranger),
      'OAEP with SHA-1': await forge({ oaepHash: 'sha1' }),
      'OAEP with a label': await forge({ oaepLabel: Buffer.from('x') }),
      'PKCS #1 v1.5': await forge({ padding: constants.RSA_PKCS1_PADDING }),
      ...Object.fromEntries(
        await Promise.all(
          [0, 16, 31, 33, 64].map(
            async (octets) =>
              [`a CEK of ${octets} octets`, await forge({ cek: randomBytes(octets), seal: randomBytes(32) })] as const,
          ),
        ),
      ),
      'no plaintext': plain(''),
      'a plaintext that is no JSON': plain('sub=1'),
      'an array': plain('[]'),
      'a string': plain('"x"'),
      null: plain('null'),
      'bad UTF-8': plain(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])),
      'a BOM': plain('\ufeff{}'),
      'a number JSON cannot carry': plain('{"a":1e999}'),
      'too deep': plain(`{"a":${'['.repeat(40)}${']'.repeat(40)}}`),
      'too many values': plain(JSON.stringify({ a: Array(1001).fill(0) })),
      ...Object.fromEntries(
        [
          { exp: '1' },
          { exp: null },
          { nbf: [] },
          { iat: {} },
          { iss: 1 },
          { sub: 1 },
          { jti: null },
          { aud: 1 },
          { aud: ['a', 1] },
          { exp: now() + 100, iat: now() + 200 },
        ].map((claims) => [`claims ${JSON.stringify(claims)}`, plain(JSON.stringify(claims))]),
      ),
      'a nested token': plain(`${header({ alg: 'none' })}.${header({ sub: '1' })}.`, { cty: 'JWT' }),
      'claims that say they are nested': plain('{"sub":"1"}', { cty: 'jwt' }),
      'too long': 'x'.repeat(16_385),
      'too long a good one': plain(JSON.stringify({ a: 'x'.repeat(13_000) })),
      'a private key': header(privateJwk),
      'two in one field': `${good}, Bearer ${good}`,
      'two with a space': `${good} ${good}`,
      'a parameter after it': `${good};v=1`,
      quoted: `"${good}"`,
      'a scheme twice': `Bearer ${good}`,
      'percent-encoded': good.replace('.', '%2E'),
    };
  }

  for (const [name, options] of Object.entries<AuthOptions>({
    'with nothing set': {},
    'with everything set': {
      resource: RESOURCE,
      requiredScopes: ['read'],
      requiredClaims: ['email'],
      cors: { origin: '*' },
      anonymous: true,
    },
  })) {
    it(`is refused with the same octets whatever is wrong with it, ${name}`, async (t) => {
      let reached = 0;
      const { server, port } = await guard(t, options, (_req, res) => {
        reached += 1;
        res.end();
      });
      Object.assign(server, { maxHeaderSize: 65_536 });
      const seen = new Map<string, string[]>();
      const tokens = Object.entries(await badTokens());
      assert(tokens.length > 75);
      for (const [kind, token] of tokens) {
        const raw = await exchange(
          port,
          `POST /mcp HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${token}\r\nConnection: close\r\n\r\n`,
        );
        const answer = raw.replace(/\r\nDate: [^\r]+/, '');
        seen.set(answer, [...(seen.get(answer) ?? []), kind]);
      }
      assert.equal(seen.size, 1, JSON.stringify([...seen], null, 1));
      assert.match([...seen.keys()][0] ?? '', /^HTTP\/1\.1 401 Unauthorized\r\n/);
      assert.equal(reached, 0);
    });
  }
});

describe('when it cannot be decided', () => {
  it('answers 503 past maxPending, and not to those before', async (t) => {
    const { port } = await guard(t, { concurrency: 1, maxPending: 0 });
    const tokens = await Promise.all(['a', 'b'].map((sub) => mint({ sub })));
    // Both requests are in one packet, so that the second is decided while the first is decrypted.
    const [one, two] = tokens.map(
      (token, index) =>
        `GET /mcp HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${token}\r\n${index ? 'Connection: close\r\n' : ''}\r\n`,
    );
    const answers = await exchange(port, `${one}${two}`);
    assert.match(answers, /^HTTP\/1\.1 200 OK\r\n[^]*"sub":"a"[^]*\r?\n?HTTP\/1\.1 503 Service Unavailable\r\n/);
    const expected = unavailable('Too many new access tokens are waiting; try again');
    assert(answers.endsWith(`\r\n\r\n${expected.body}`));
    assert.match(answers, /\r\nretry-after: 1\r\n/);
    assert.equal(
      (await ask(port, { headers: { authorization: `Bearer ${tokens[1]}` } })).status,
      200,
      'afterwards it is served',
    );
  });

  it('answers 503 while no key is valid', async (t) => {
    const exp = now() + 100;
    let clock = exp - 1;
    const { port } = await guard(t, { keys: { keys: [{ ...(await keyPair()).privateJwk, exp }] }, now: () => clock });
    const request = { headers: await bearer({ sub: '1', iat: 0, exp: exp + 1000 }) };
    assert.equal((await ask(port, request)).status, 200);
    clock = exp;
    assert.deepEqual(await ask(port, request), unavailable('No decryption key is valid at this time; try again'));
    assert.deepEqual(JSON.parse((await ask(port, { path: JWKS })).body), { keys: [] });
    assert.deepEqual(await ask(port), noToken());
  });

  it('answers 503 when the keys of the issuer were never read', async (t) => {
    const down = await guard(t, {});
    down.server.close();
    const jwks = new URL(`http://127.0.0.1:${down.port}/jwks`);
    const { port } = await guard(t, { trustedIssuers: [{ issuer: 'https://idp.example', jwks }], audience: 'a' });
    const token = compactEncrypt(Buffer.from('eyJhbGciOiJFUzI1NiJ9.e30.AAAA'), (await keyPair()).publicJwk, {
      cty: 'JWT',
    });
    assert.deepEqual(
      await ask(port, { headers: { authorization: `Bearer ${token}` } }),
      unavailable('The keys of the token issuer cannot be read; try again'),
    );
    assert.deepEqual(
      await ask(port, { headers: await bearer({ sub: '1' }) }),
      badToken(),
      'an unsigned token needs no issuer to be refused',
    );
  });
});

describe('the order of the rows', () => {
  const evil = { origin: 'https://evil.example' };
  const preflight = { 'access-control-request-method': 'POST' };
  const options: AuthOptions = {
    publicPaths: [JWKS, '/open'],
    cors: { origin: ['https://app.example'] },
    requiredClaims: ['email'],
    clockTolerance: 0,
  };
  const cases: [name: string, request: () => Promise<Ask>, status: number][] = [
    ['a document before the Origin and before public paths', async () => ({ path: JWKS, headers: evil }), 200],
    [
      'a document before a preflight with a foreign Origin',
      async () => ({ path: JWKS, method: 'OPTIONS', headers: { ...evil, ...preflight } }),
      204,
    ],
    ['the Origin before a preflight', async () => ({ method: 'OPTIONS', headers: { ...evil, ...preflight } }), 403],
    ['the Origin before public paths', async () => ({ path: '/open', headers: evil }), 403],
    ['the Origin before no token', async () => ({ headers: evil }), 403],
    [
      'a preflight before public paths',
      async () => ({ path: '/open', method: 'OPTIONS', headers: { origin: 'https://app.example', ...preflight } }),
      204,
    ],
    [
      'a preflight before two tokens',
      async () => ({
        method: 'OPTIONS',
        headers: { origin: 'https://app.example', ...preflight, authorization: ['Bearer x', 'Bearer y'] },
      }),
      204,
    ],
    [
      'a public path before two tokens',
      async () => ({ path: '/open', headers: { authorization: ['Bearer x', 'Bearer y'] } }),
      200,
    ],
    [
      'two tokens before either is looked at',
      async () => {
        const { authorization } = await bearer({ email: 'e' });
        return { headers: { authorization: [authorization, 'Bearer x'] } };
      },
      400,
    ],
    ['expiry before missing claims', async () => ({ headers: await bearer({ iat: 1, exp: 2 }) }), 401],
    ['missing claims', async () => ({ headers: await bearer({}) }), 403],
  ];
  it('is the contract’s', async (t) => {
    const { port } = await guard(t, options);
    for (const [name, request, status] of cases) assert.equal((await ask(port, await request())).status, status, name);
  });
});
