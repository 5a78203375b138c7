// The attack classes in one table, each with several cases, against a real server on a real socket: nobody gets in.
// The other suites take each family apart; here every case leaves the handler alone and the next honest user unharmed.
import assert from 'node:assert/strict';
import { createHmac, createPrivateKey, type KeyObject } from 'node:crypto';
import { before, describe, it } from 'node:test';
import {
  type AuthOptions,
  compactEncrypt,
  type Jwk,
  JWETokenVerifier,
  KeyError,
  type RsaPrivateJwk,
  type RsaPublicJwk,
} from 'mcp-auth-middleware';
import { keyPair, root, run } from './support/support.js';
import {
  base64url,
  type Content,
  edit,
  editBytes,
  flip,
  newPair,
  oaep,
  type OaepDefect,
  pkcs1,
  type Recipe,
  seal,
  SIGNERS,
  signJws,
  untyped,
} from './support/tokens.js';
import { exchange, guard } from './support/wire.js';

const NOW = Math.floor(Date.now() / 1000);
const ISSUER = 'https://issuer.example';
const AUDIENCE = 'https://server.example/mcp';
const SIGNED = { iss: ISSUER, aud: AUDIENCE, sub: 'ada', iat: NOW, exp: NOW + 600 };

let server: RsaPublicJwk;
let privateJwk: RsaPrivateJwk;
let stranger: RsaPublicJwk;
before(async () => {
  ({ publicJwk: server, privateJwk } = await keyPair());
  stranger = (await keyPair('stranger')).publicJwk;
});

const issuer = newPair('ec', { namedCurve: 'P-256' });
const rsaIssuer = newPair('rsa', { modulusLength: 2048 });
const other = newPair('ed25519');
const attacker = newPair('ec', { namedCurve: 'P-256' });
interface Pair {
  publicKey: KeyObject;
  privateKey: KeyObject;
}
const jwkOf = ({ publicKey }: Pair, kid: string, alg: string): Jwk =>
  untyped({ ...publicKey.export({ format: 'jwk' }), kid, alg, use: 'sig' });
const signed = ({ privateKey }: Pair, alg: string, header: object = {}, claims: Content = SIGNED): string =>
  signJws({ alg, kid: 'issuer', ...header }, claims, (input) => SIGNERS[alg]?.(input, privateKey) ?? assert.fail(alg));
const nest = (inner: Content, header: object = { cty: 'JWT' }): string => seal(server, { header, plaintext: inner });

const UNIFORM = 'The access token is invalid';
const EXPIRED = 'The access token has expired';
const EARLY = 'The access token is not valid yet';
const FOREIGN_ISSUER = 'The access token is from another issuer';
const FOREIGN_AUDIENCE = 'The access token is for another audience';

/** What the attacker sends, and what the answer says when it is not the uniform text. */
type Attack = [name: string, token: () => string, description?: string];
interface Family {
  options?: AuthOptions;
  honest?: () => string;
  attacks: Attack[];
}

const sealed =
  (recipe: Recipe): (() => string) =>
  () =>
    seal(server, recipe);
const claims = (plaintext: Content): (() => string) => sealed({ plaintext });
const wrapped = (defect: OaepDefect): (() => string) => sealed({ wrap: (jwk, cek) => oaep(jwk, cek, defect) });
const withoutTolerance: AuthOptions = { clockTolerance: 0, now: () => NOW };

const trusting = (): AuthOptions => ({
  audience: AUDIENCE,
  trustedIssuers: [
    { issuer: ISSUER, jwks: { keys: [jwkOf(issuer, 'issuer', 'ES256'), jwkOf(rsaIssuer, 'rsa', 'RS256')] } },
    { issuer: 'https://other.example', jwks: { keys: [jwkOf(other, 'other', 'EdDSA')] } },
  ],
});

const FAMILIES: Record<string, Family> = {
  'the structure of the token': {
    attacks: [
      ['nothing', () => ''],
      ['four segments', () => seal(server).split('.').slice(0, 4).join('.')],
      ['six segments', () => `${seal(server)}.AAAA`],
      ['only dots', () => '....'],
      ['a JWS where a JWE must be', () => signed(issuer, 'ES256')],
      ['an unsecured JWT', () => `${base64url({ alg: 'none' })}.${base64url({ sub: 'ada' })}.`],
      [
        '16,385 characters',
        () => {
          const token = seal(server, { plaintext: { a: 'x'.repeat(11_000) } });
          return edit(token, 'ciphertext', (text) => text + 'A'.repeat(16_385 - token.length));
        },
      ],
    ],
  },
  base64url: {
    attacks: [
      ['padding', () => `${seal(server)}==`],
      [
        'stray bits',
        () => edit(seal(server), 'tag', (text) => text.slice(0, -1) + String.fromCharCode(text.charCodeAt(21) + 1)),
      ],
      ['a percent-encoded dot', () => seal(server).replace('.', '%2E')],
      ['a character of another alphabet', () => edit(seal(server), 'iv', (text) => `+${text.slice(1)}`)],
      ['a space inside', () => edit(seal(server), 'ciphertext', (text) => `${text.slice(0, 4)} ${text.slice(4)}`)],
      ['an octet beyond ASCII', () => edit(seal(server), 'tag', (text) => `${text.slice(1)}\xE9`)],
    ],
  },
  'the header': {
    attacks: [
      ['alg none', sealed({ header: { alg: 'none' } })],
      ['alg dir', sealed({ header: { alg: 'dir' }, wrap: () => Buffer.of() })],
      [
        'the other RSA algorithm, sealed with it',
        sealed({ header: { alg: 'RSA-OAEP' }, wrap: (jwk, cek) => oaep(jwk, cek, { hash: 'sha1' }) }),
      ],
      ['RSA1_5, sealed with it', sealed({ header: { alg: 'RSA1_5' }, wrap: pkcs1 })],
      ['A128GCM, sealed with it', sealed({ header: { enc: 'A128GCM' }, cek: Buffer.alloc(16, 1) })],
      ['zip', sealed({ header: { zip: 'DEF' } })],
      ['crit', sealed({ header: { crit: ['exp'], exp: 1 } })],
      ['an unknown kid', sealed({ header: { kid: 'another' } })],
      ['kid an array', sealed({ header: { kid: [1] } })],
      ['a key of its own in jwk', () => seal(stranger, { header: { kid: server.kid, jwk: stranger } })],
      [
        'a key of its own at jku',
        () => seal(stranger, { header: { kid: server.kid, jku: 'http://127.0.0.1:9/jwks.json' } }),
      ],
      [
        'a header changed after it was sealed',
        () =>
          edit(seal(server), 'protected header', () =>
            base64url({ alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: server.kid, typ: 'JWT' }),
          ),
      ],
      ['members in __proto__', sealed({ header: '{"__proto__":{"alg":"RSA-OAEP-256","enc":"A256GCM"}}' })],
      ['a billion PBKDF2 rounds', sealed({ header: { alg: 'PBES2-HS512+A256KW', p2c: 1e9, p2s: 'AAAA' } })],
    ],
  },
  'the lengths of key, IV and tag': {
    attacks: [
      [
        'an encrypted key an octet short',
        () => editBytes(seal(server), 'encrypted key', (octets) => octets.subarray(1)),
      ],
      [
        'an encrypted key an octet long',
        () => editBytes(seal(server), 'encrypted key', (octets) => Buffer.concat([octets, Buffer.of(0)])),
      ],
      ['an IV of 8 octets, sealed with it', sealed({ iv: Buffer.alloc(8, 1) })],
      ['an IV of 16 octets, sealed with it', sealed({ iv: Buffer.alloc(16, 1) })],
      ['a tag of 4 octets, sealed with it', sealed({ tagLength: 4 })],
      ['a tag of 12 octets, sealed with it', sealed({ tagLength: 12 })],
      ['a tag cut to nothing', () => edit(seal(server), 'tag', () => '')],
    ],
  },
  'OAEP and GCM': {
    attacks: [
      ['a label', wrapped({ label: 'label' })],
      ['MGF1 of SHA-1', wrapped({ mgfHash: 'sha1' })],
      ['a first octet of 1 (Manger)', wrapped({ first: 1 })],
      [
        'a wrong lHash',
        wrapped({
          spoil: (block) => {
            block.writeUInt8(block.readUInt8(0) ^ 1, 0);
          },
        }),
      ],
      ['PKCS #1 v1.5 padding', sealed({ wrap: pkcs1 })],
      ['a number not below n', sealed({ wrap: () => Buffer.from(server.n, 'base64url') })],
      ['a CEK of 16 octets', sealed({ cek: Buffer.alloc(16, 1) })],
      ['a CEK of 31 octets', sealed({ cek: Buffer.alloc(31, 1) })],
      ['a CEK of 33 octets', sealed({ cek: Buffer.alloc(33, 1) })],
      ['an empty CEK', sealed({ cek: Buffer.of() })],
      [
        'a stripped leading zero',
        () => {
          for (;;) {
            const token = seal(server);
            if (Buffer.from(token.split('.')[1] ?? '', 'base64url')[0] === 0)
              return editBytes(token, 'encrypted key', (octets) => octets.subarray(1));
          }
        },
      ],
      ['a changed bit of the encrypted key', () => editBytes(seal(server), 'encrypted key', flip)],
      ['a changed bit of the ciphertext', () => editBytes(seal(server), 'ciphertext', flip)],
      ['a changed bit of the tag', () => editBytes(seal(server), 'tag', flip)],
      ['the ciphertext of another', () => edit(seal(server), 'ciphertext', () => seal(server).split('.')[3] ?? '')],
    ],
  },
  'the payload': {
    attacks: [
      ['nothing', claims('')],
      ['no JSON', claims('sub=ada')],
      ['an array', claims([{ sub: 'ada' }])],
      ['null', claims('null')],
      ['a byte order mark', claims('\uFEFF{"sub":"ada"}')],
      ['invalid UTF-8', claims(Buffer.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d))],
      ['33 levels', claims(`${'{"a":'.repeat(33)}1${'}'.repeat(33)}`)],
      ['1,001 values', claims({ a: Array.from({ length: 999 }, () => 0) })],
      ['1e999', claims('{"a":1e999}')],
      ['sub a number', claims({ sub: 1 })],
      ['exp a string', claims({ exp: '99999999999' })],
      ['aud an object', claims({ aud: {} })],
      ['five thousand brackets', claims(`{"a":${'['.repeat(5000)}${']'.repeat(5000)}}`)],
    ],
  },
  'times at the boundary second': {
    options: withoutTolerance,
    honest: claims({ sub: 'ada', nbf: NOW, iat: NOW, exp: NOW + 1 }),
    attacks: [
      ['exp now', claims({ exp: NOW }), EXPIRED],
      ['exp zero', claims({ exp: 0 }), EXPIRED],
      ['nbf a second ahead', claims({ nbf: NOW + 1 }), EARLY],
      ['iat a second ahead', claims({ iat: NOW + 1 }), EARLY],
      ['exp at iat', claims({ iat: NOW + 1, exp: NOW + 1 })],
      ['exp before iat', claims({ iat: NOW + 2, exp: NOW + 1 })],
    ],
  },
  age: {
    options: { ...withoutTolerance, maxTokenAge: 60, requireExp: true },
    honest: claims({ sub: 'ada', iat: NOW - 60, exp: NOW + 1 }),
    attacks: [
      ['a second too old', claims({ iat: NOW - 61, exp: NOW + 1 }), EXPIRED],
      ['no iat', claims({ exp: NOW + 1 })],
      ['no exp', claims({ iat: NOW })],
    ],
  },
  'the audience': {
    options: { audience: AUDIENCE },
    honest: claims({ sub: 'ada', aud: ['x', AUDIENCE] }),
    attacks: [
      ['none', claims({}), FOREIGN_AUDIENCE],
      ['another', claims({ aud: 'x' }), FOREIGN_AUDIENCE],
      ['one that begins the same', claims({ aud: `${AUDIENCE}/` }), FOREIGN_AUDIENCE],
      ['an empty list', claims({ aud: [] }), FOREIGN_AUDIENCE],
    ],
  },
  'nested signatures': {
    options: trusting(),
    honest: () => nest(signed(issuer, 'ES256')),
    attacks: [
      ['none', () => nest(signJws({ alg: 'none' }, SIGNED, () => Buffer.of()))],
      ['none with a kid', () => nest(signJws({ alg: 'none', kid: 'issuer' }, SIGNED, () => Buffer.of()))],
      [
        'HMAC with the public key',
        () =>
          nest(
            signJws({ alg: 'HS256', kid: 'rsa' }, SIGNED, (input) =>
              createHmac('sha256', rsaIssuer.publicKey.export({ type: 'spki', format: 'pem' }))
                .update(input)
                .digest(),
            ),
          ),
      ],
      ['claims without a signature', () => seal(server, { plaintext: SIGNED })],
      ['claims without a signature, called JWT', () => nest(SIGNED)],
      ['no cty', () => nest(signed(issuer, 'ES256'), {})],
      ['another cty', () => nest(signed(issuer, 'ES256'), { cty: 'JOSE' })],
      ['a signature by the attacker', () => nest(signed(attacker, 'ES256'))],
      [
        'a signature by the attacker, with his key',
        () => nest(signed(attacker, 'ES256', { jwk: jwkOf(attacker, 'issuer', 'ES256') })),
      ],
      [
        'a signature by the encryption key',
        () =>
          nest(
            signJws(
              { alg: 'RS256', kid: server.kid },
              SIGNED,
              (input) =>
                SIGNERS['RS256']?.(input, createPrivateKey({ key: { ...privateJwk }, format: 'jwk' })) ?? assert.fail(),
            ),
          ),
      ],
      ['PS256 by a key for RS256', () => nest(signed(rsaIssuer, 'PS256', { kid: 'rsa' }))],
      ['a stripped signature', () => nest(signed(issuer, 'ES256').replace(/[^.]+$/, ''))],
      ['ES256 of zeros', () => nest(signJws({ alg: 'ES256', kid: 'issuer' }, SIGNED, () => Buffer.alloc(64)))],
      ['crit inside', () => nest(signed(issuer, 'ES256', { crit: ['b64'], b64: false }))],
      ['an unknown kid inside', () => nest(signed(issuer, 'ES256', { kid: 'another' }))],
      ['two nestings', () => nest(signed(issuer, 'ES256', { cty: 'JWT' }, signed(issuer, 'ES256')))],
      ['a JWE in the JWE', () => nest(nest(signed(issuer, 'ES256')))],
      [
        'another issuer under this one’s key',
        () => nest(signed(issuer, 'ES256', {}, { ...SIGNED, iss: 'https://other.example' })),
      ],
      ['this issuer under another one’s key', () => nest(signed(other, 'EdDSA', { kid: 'other' }))],
      ['no issuer', () => nest(signed(issuer, 'ES256', {}, { ...SIGNED, iss: undefined }))],
      [
        'an unknown issuer under a known key',
        () => nest(signed(issuer, 'ES256', {}, { ...SIGNED, iss: 'https://third.example' })),
        FOREIGN_ISSUER,
      ],
      [
        'an unknown issuer under its own key',
        () => nest(signed(attacker, 'ES256', {}, { ...SIGNED, iss: 'https://third.example' })),
        FOREIGN_ISSUER,
      ],
      ['cnf', () => nest(signed(issuer, 'ES256', {}, { ...SIGNED, cnf: { jkt: 'x' } }))],
      [
        'an id that would be rounded',
        () => nest(signed(issuer, 'ES256', {}, '{"iss":"https://issuer.example","id":9007199254740993}')),
      ],
      ['a sub in the JWE header that is another’s', () => nest(signed(issuer, 'ES256'), { cty: 'JWT', sub: 'eve' })],
      [
        'a token for another recipient, encrypted again by it',
        () => nest(signed(issuer, 'ES256', {}, { ...SIGNED, aud: 'https://other.example/mcp' })),
        FOREIGN_AUDIENCE,
      ],
      ['no aud', () => nest(signed(issuer, 'ES256', {}, { ...SIGNED, aud: undefined })), FOREIGN_AUDIENCE],
      ['no exp', () => nest(signed(issuer, 'ES256', {}, { ...SIGNED, exp: undefined }))],
    ],
  },
  'a signature nobody asked for': {
    attacks: [
      ['a nested token', () => nest(signed(issuer, 'ES256'))],
      ['in lower case', () => nest(signed(issuer, 'ES256'), { cty: 'jwt' })],
      ['without cty', () => nest(signed(issuer, 'ES256'), {})],
    ],
  },
};

describe('on the wire', () => {
  for (const [family, { options = {}, honest, attacks }] of Object.entries(FAMILIES)) {
    it(`nobody gets in by ${family}`, async (t) => {
      let reached = 0;
      const { server: guarded, port } = await guard(t, options, (_req, res) => {
        reached++;
        res.end('reached');
      });
      Object.assign(guarded, { maxHeaderSize: 65_536 }); // so that it is not Node that refuses a long token
      const send = async (token: string): Promise<string> => {
        const answer = await exchange(
          port,
          `POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\n` +
            'Content-Length: 0\r\nConnection: close\r\n\r\n',
        );
        return answer.replace(/\r\nDate: [^\r]+/, '');
      };
      const welcome = honest ?? sealed({});
      assert.match(await send(welcome()), /^HTTP\/1\.1 200 OK\r\n[^]*reached/, 'the honest user before');
      const answers = new Map<string, Set<string>>();
      for (const [name, token, description = UNIFORM] of attacks) {
        const answer = await send(token());
        assert.ok(answer.startsWith('HTTP/1.1 401 Unauthorized\r\n'), `${name}: ${answer}`);
        assert.ok(
          answer.endsWith(`\r\n\r\n${JSON.stringify({ error: 'invalid_token', error_description: description })}`),
          `${name}: ${answer}`,
        );
        answers.set(description, (answers.get(description) ?? new Set()).add(answer));
      }
      for (const [description, octets] of answers)
        assert.equal(octets.size, 1, `"${description}" comes in one form, to the last octet`);
      assert.equal(reached, 1, 'the handler');
      assert.match(await send(welcome()), /^HTTP\/1\.1 200 OK\r\n[^]*reached/, 'the honest user afterwards');
    });
  }
  it('and the table holds every family with several cases', () => {
    for (const [family, { attacks }] of Object.entries(FAMILIES)) assert.ok(attacks.length >= 3, family);
    assert.ok(Object.values(FAMILIES).flatMap(({ attacks }) => attacks).length >= 100);
  });
});

describe('a server does not start', () => {
  const KEYS: [name: string, key: () => object | Promise<object>, code: string][] = [
    ['without a private key', () => server, 'public_only'],
    ['with e = 1', () => ({ ...privateJwk, e: 'AQ' }), 'weak'],
    ['with a foreign d', async () => ({ ...privateJwk, d: (await keyPair('stranger')).privateJwk.d }), 'inconsistent'],
    ['with p and q swapped', () => ({ ...privateJwk, p: privateJwk.q, q: privateJwk.p }), 'inconsistent'],
    ['with a third prime', () => ({ ...privateJwk, oth: [] }), 'unsupported'],
    ['with a signing key', () => ({ ...privateJwk, use: 'sig' }), 'unsupported'],
    ['with 1024 bits', () => newPair('rsa', { modulusLength: 1024 }).privateKey.export({ format: 'jwk' }), 'weak'],
    ['with padding in n', () => ({ ...privateJwk, n: `${privateJwk.n}=` }), 'malformed'],
  ];
  for (const [name, key, code] of KEYS) {
    it(name, async () => {
      const made = untyped<RsaPrivateJwk>(await key());
      assert.throws(
        () => new JWETokenVerifier({ keys: made }),
        (error) => error instanceof KeyError && error.code === code && !error.message.includes(privateJwk.d),
      );
    });
  }
});

describe('prototype pollution', () => {
  it('through claims reaches neither Object.prototype nor the user', async () => {
    const verifier = new JWETokenVerifier({ keys: privateJwk });
    const text =
      '{"__proto__":{"admin":true,"sub":"eve"},"constructor":{"prototype":{"admin":true}},' +
      '"nested":{"__proto__":{"admin":true}}}';
    const user = await verifier.verifyToken(compactEncrypt(Buffer.from(text), server));
    assert.deepEqual(
      [
        user['admin'],
        user.sub,
        untyped<{ admin?: unknown }>(user['nested']).admin,
        untyped<{ admin?: unknown }>({}).admin,
      ],
      [undefined, undefined, undefined, undefined],
    );
    assert.equal(JSON.stringify(user), text);
  });

  // What other code of the process did to Object.prototype. In a process of its own, for it breaks whatever it meets.
  const PROGRAM = `
import { readFileSync } from 'node:fs';
import { AuthError, JWETokenVerifier } from 'mcp-auth-middleware';
const { key, good, names } = JSON.parse(readFileSync(0, 'utf8'));
const bad = [
  good.replace(/.$/, '') + (good.endsWith('A') ? 'Q' : 'A'),
  'x',
  good.replace(/[^.]+/, Buffer.from('{}').toString('base64url')),
];
const results = {};
for (const name of names) for (const value of ['x', 1, true, {}]) {
  const verifier = new JWETokenVerifier({ keys: key });
  Object.prototype[name] = value;
  const outcomes = [];
  for (const token of [good, ...bad])
    outcomes.push(await verifier.verifyToken(token).then((user) => user, (error) => error));
  delete Object.prototype[name];
  const told = (outcome) =>
    outcome instanceof AuthError ? outcome.code : outcome instanceof Error ? 'fault' : JSON.stringify(outcome);
  results[name + ' ' + typeof value] = outcomes.map(told);
}
process.stdout.write(JSON.stringify(results));
`;
  it('of the process changes no verdict', async () => {
    const members = [
      'kid',
      'enc',
      'zip',
      'crit',
      'cty',
      'typ',
      'd',
      'exp',
      'nbf',
      'iat',
      'aud',
      'iss',
      'sub',
      'jti',
      'scope',
      'scp',
      'data',
      'n',
      'e',
      'k',
      'claimsMember',
      'audience',
      'keys',
      'requireExp',
      'trustedIssuers',
    ];
    // WebCrypto itself reads these of the key it imports, inherited ones too: then nobody is let in, and it is no
    // verdict on the token but a fault of this server's.
    const ofTheRuntime = ['alg', 'use', 'key_ops', 'oth'];
    const good = compactEncrypt(Buffer.from('{"name":"Ada"}'), server);
    const { stdout, stderr, code } = await run(
      process.execPath,
      ['--no-warnings', '--input-type=module', '-e', PROGRAM],
      {
        cwd: root,
        input: JSON.stringify({ key: privateJwk, good, names: [...members, ...ofTheRuntime] }),
      },
    );
    assert.equal(code, 0, stderr);
    const results: Record<string, string[]> = JSON.parse(stdout);
    assert.equal(Object.keys(results).length, (members.length + ofTheRuntime.length) * 4);
    for (const [name, [accepted = '', ...rejected]] of Object.entries(results)) {
      const faulty = ofTheRuntime.includes(name.split(' ')[0] ?? '') && accepted === 'fault';
      if (!faulty) assert.equal(accepted, '{"name":"Ada"}', name);
      // The first is a changed token, which costs an RSA operation; the others are refused before.
      assert.deepEqual(rejected, [faulty ? 'fault' : 'invalid_token', 'invalid_token', 'invalid_token'], name);
    }
  });

  const SERVER = `
import { readFileSync } from 'node:fs';
import { createServer, get } from 'node:http';
import { withAuth } from 'mcp-auth-middleware';
const { key, options } = JSON.parse(readFileSync(0, 'utf8'));
const server = createServer(withAuth((req, res) => res.end('reached'), { keys: key })).listen(0, '127.0.0.1');
await new Promise((resolve) => server.once('listening', resolve));
const target = { host: '127.0.0.1', port: server.address().port, path: '/mcp', agent: false };
const ask = () => new Promise((resolve, reject) => get(target, (res) => {
  res.resume();
  resolve(res.statusCode);
}).on('error', reject));
const statuses = { before: await ask() };
for (const [name, value] of Object.entries(options)) {
  Object.prototype[name] = value;
  try { statuses[name] = await ask(); } finally { delete Object.prototype[name]; }
}
process.stdout.write(JSON.stringify(statuses));
server.close();
`;
  it('of the process turns no option of a running server on', async () => {
    const options = {
      anonymous: true,
      publicPaths: ['/mcp'],
      jwksPath: '/mcp',
      tokenHeader: 'host',
      cors: { origin: '*' },
      resource: 'https://a.example/',
      bindSessions: false,
      requireExp: false,
      verifier: {},
    };
    const { stdout, stderr, code } = await run(
      process.execPath,
      ['--no-warnings', '--input-type=module', '-e', SERVER],
      { cwd: root, input: JSON.stringify({ key: privateJwk, options }) },
    );
    assert.equal(code, 0, stderr);
    assert.deepEqual(
      JSON.parse(stdout),
      Object.fromEntries(['before', ...Object.keys(options)].map((name) => [name, 401])),
    );
  });
});
