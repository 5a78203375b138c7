// Keys: what is imported, what is refused and why, what is published, thumbprints, generation.
import assert from 'node:assert/strict';
import { createPrivateKey, createPublicKey, generateKeyPairSync, generatePrimeSync } from 'node:crypto';
import { before, describe, it } from 'node:test';
import { calculateJwkThumbprint } from 'jose';
import {
  compactDecrypt,
  compactEncrypt,
  encryptToken,
  generateKeyPair,
  type Jwk,
  JWETokenVerifier,
  jwkThumbprint,
  KeyError,
  type KeyErrorCode,
  publicJwks,
  type RsaPrivateJwk,
  type RsaPublicJwk,
} from 'mcp-auth-middleware';
import { keyPair } from './support/support.js';
import { keyRefused, newPair, seal, untyped } from './support/tokens.js';

const PRIVATE_MEMBERS = ['d', 'p', 'q', 'dp', 'dq', 'qi'] as const;
const PUBLIC_MEMBERS = ['alg', 'e', 'kid', 'kty', 'n', 'use'];

let privateJwk: RsaPrivateJwk;
let publicJwk: RsaPublicJwk;
let other: RsaPrivateJwk;
let secrets: string[];
before(async () => {
  ({ privateJwk, publicJwk } = await keyPair());
  other = (await keyPair('another')).privateJwk;
  secrets = PRIVATE_MEMBERS.map((member) => privateJwk[member]);
});

const verifierOf = (...keys: unknown[]): JWETokenVerifier => new JWETokenVerifier({ keys: { keys: untyped(keys) } });
const readUint = (text: string): bigint => BigInt(`0x${Buffer.from(text, 'base64url').toString('hex')}`);
function writeUint(value: bigint): string {
  const hex = value.toString(16);
  return Buffer.from(hex.length % 2 ? `0${hex}` : hex, 'hex').toString('base64url');
}

function inverse(value: bigint, modulus: bigint): bigint {
  let [r, next, t, following] = [modulus, value % modulus, 0n, 1n];
  while (next !== 0n) {
    const quotient = r / next;
    [r, next, t, following] = [next, r - quotient * next, following, t - quotient * following];
  }
  assert.equal(r, 1n, 'no inverse');
  return t < 0n ? t + modulus : t;
}

/** A key of any two factors whose members all fit together, the way arithmetic checks them. */
function assemble(p: bigint, q: bigint): RsaPublicJwk {
  const lambda = (p - 1n) * (q - 1n);
  const d = inverse(65537n, lambda);
  const members = { n: p * q, e: 65537n, d, p, q, dp: d % (p - 1n), dq: d % (q - 1n), qi: inverse(q, p) };
  return {
    kty: 'RSA',
    n: '',
    e: '',
    ...Object.fromEntries(Object.entries(members).map(([name, value]) => [name, writeUint(value)])),
  };
}

const exported = (modulusLength: number, publicExponent = 65537): object =>
  newPair('rsa', { modulusLength, publicExponent }).privateKey.export({ format: 'jwk' });

/** The bytes of a number one too long: a leading zero octet, which big-endian integers of JWKs must not have. */
const padLeft = (text: string): string =>
  Buffer.concat([Buffer.of(0), Buffer.from(text, 'base64url')]).toString('base64url');

type Defect = [name: string, change: (key: RsaPrivateJwk) => object, code: KeyErrorCode, message: RegExp];

describe('the import of a private key', () => {
  const MEMBERS: Defect[] = (['n', 'e', ...PRIVATE_MEMBERS] as const).flatMap((member): Defect[] => [
    [
      `${member} with padding`,
      (key) => ({ ...key, [member]: `${key[member]}=` }),
      'malformed',
      new RegExp(`"${member}"`),
    ],
    [
      `${member} with a leading zero octet`,
      (key) => ({ ...key, [member]: padLeft(key[member]) }),
      'malformed',
      new RegExp(`"${member}"`),
    ],
    [
      `${member} with white space`,
      (key) => ({ ...key, [member]: `${key[member].slice(0, 2)}\n${key[member].slice(2)}` }),
      'malformed',
      new RegExp(`"${member}"`),
    ],
    [`${member} empty`, (key) => ({ ...key, [member]: '' }), 'malformed', new RegExp(`"${member}"`)],
    [`${member} zero`, (key) => ({ ...key, [member]: 'AA' }), 'malformed', new RegExp(`"${member}"`)],
    [`${member} a number`, (key) => ({ ...key, [member]: 65537 }), 'malformed', new RegExp(`"${member}"`)],
    [`${member} null`, (key) => ({ ...key, [member]: null }), 'malformed', new RegExp(`"${member}"`)],
    [`${member} an array`, (key) => ({ ...key, [member]: [key[member]] }), 'malformed', new RegExp(`"${member}"`)],
    ...(member === 'd'
      ? []
      : [
          [
            `no ${member}`,
            ({ [member]: _gone, ...key }) => key,
            'malformed',
            PRIVATE_MEMBERS.some((name) => name === member)
              ? /needs all of d, p, q, dp, dq and qi/
              : new RegExp(`"${member}"`),
          ] satisfies Defect,
        ]),
  ]);
  const FOREIGN: Defect[] = (['n', ...PRIVATE_MEMBERS] as const).map((member): Defect => [
    `${member} of another key`,
    (key) => ({ ...key, [member]: other[member] }),
    'inconsistent',
    /belong together/,
  ]);
  const WRONG_BY: Defect[] = PRIVATE_MEMBERS.map((member): Defect => [
    `${member} two too large`,
    (key) => ({ ...key, [member]: writeUint(readUint(key[member]) + 2n) }),
    'inconsistent',
    /belong together/,
  ]);
  /** Another d, with the CRT members that belong to it. */
  const withD = (key: RsaPrivateJwk, step: (p: bigint, q: bigint) => bigint): object => {
    const [n, p, q] = [readUint(key.n), readUint(key.p), readUint(key.q)];
    const d = (readUint(key.d) + step(p, q)) % n;
    return { ...key, d: writeUint(d), dp: writeUint(d % (p - 1n)), dq: writeUint(d % (q - 1n)) };
  };
  const CRT: Defect[] = [
    [
      'a d that is right for q only, and dp and dq that follow it',
      (key) => withD(key, (_p, q) => q - 1n),
      'inconsistent',
      /belong together/,
    ],
    [
      'a d that is right for p only, and dp and dq that follow it',
      (key) => withD(key, (p) => p - 1n),
      'inconsistent',
      /belong together/,
    ],
    [
      'a d that is right for neither, and dp and dq that follow it',
      (key) => withD(key, () => 2n),
      'inconsistent',
      /belong together/,
    ],
    ['p and q swapped', (key) => ({ ...key, p: key.q, q: key.p }), 'inconsistent', /belong together/],
    ['dp and dq swapped', (key) => ({ ...key, dp: key.dq, dq: key.dp }), 'inconsistent', /belong together/],
    ['p = 1 and q = n', (key) => ({ ...key, p: 'AQ', q: key.n }), 'inconsistent', /belong together/],
    ['p = n and q = 1', (key) => ({ ...key, p: key.n, q: 'AQ' }), 'inconsistent', /belong together/],
    [
      'd as large as n',
      (key) => ({ ...key, d: writeUint(readUint(key.d) + (readUint(key.p) - 1n) * (readUint(key.q) - 1n)) }),
      'inconsistent',
      /belong together/,
    ],
    [
      'qi that is not reduced',
      (key) => ({ ...key, qi: writeUint(readUint(key.qi) + readUint(key.p)) }),
      'inconsistent',
      /belong together/,
    ],
    [
      'dp that is not reduced',
      (key) => ({ ...key, dp: writeUint(readUint(key.dp) + readUint(key.p) - 1n) }),
      'inconsistent',
      /belong together/,
    ],
  ];
  const STRENGTH: Defect[] = [
    ['1024 bits', () => exported(1024), 'weak', /1024 bits.*2048/],
    ['2047 bits', () => exported(2047), 'weak', /2047 bits.*2048/],
    ['8193 bits', (key) => ({ ...key, n: writeUint((1n << 8192n) | 1n) }), 'weak', /8193 bits/],
    ['an even n', (key) => ({ ...key, n: writeUint(readUint(key.n) - 1n) }), 'weak', /odd/],
    ['e = 1', (key) => ({ ...key, e: 'AQ' }), 'weak', /65537/],
    ['e = 3', () => exported(2048, 3), 'weak', /65537/],
    ['e = 2^32 + 1', (key) => ({ ...key, e: writeUint((1n << 32n) | 1n) }), 'weak', /65537/],
  ];
  const PURPOSE: Defect[] = [
    ['kty EC', (key) => ({ ...key, kty: 'EC' }), 'unsupported', /"kty"/],
    ['kty in lower case', (key) => ({ ...key, kty: 'rsa' }), 'unsupported', /"kty"/],
    ['kty oct', () => ({ kty: 'oct', k: 'AAAA' }), 'unsupported', /"kty"/],
    ['no kty', ({ kty: _gone, ...key }) => key, 'unsupported', /"kty"/],
    ['use sig', (key) => ({ ...key, use: 'sig' }), 'unsupported', /"use"/],
    ['use a number', (key) => ({ ...key, use: 1 }), 'unsupported', /"use"/],
    ['use null', (key) => ({ ...key, use: null }), 'unsupported', /"use"/],
    ['key_ops for signatures', (key) => ({ ...key, key_ops: ['sign'] }), 'unsupported', /"key_ops"/],
    ['key_ops of the public half', (key) => ({ ...key, key_ops: ['encrypt', 'wrapKey'] }), 'unsupported', /"key_ops"/],
    ['empty key_ops', (key) => ({ ...key, key_ops: [] }), 'unsupported', /"key_ops"/],
    ['key_ops a string', (key) => ({ ...key, key_ops: 'decrypt' }), 'unsupported', /"key_ops"/],
    ['key_ops with a number', (key) => ({ ...key, key_ops: ['decrypt', 1] }), 'unsupported', /"key_ops"/],
    ['alg RSA1_5', (key) => ({ ...key, alg: 'RSA1_5' }), 'unsupported', /"alg"/],
    ['alg RSA-OAEP-512', (key) => ({ ...key, alg: 'RSA-OAEP-512' }), 'unsupported', /"alg"/],
    ['alg of signatures', (key) => ({ ...key, alg: 'RS256' }), 'unsupported', /"alg"/],
    ['alg null', (key) => ({ ...key, alg: null }), 'unsupported', /"alg"/],
    ['alg an array', (key) => ({ ...key, alg: ['RSA-OAEP-256'] }), 'unsupported', /"alg"/],
    ['oth', (key) => ({ ...key, oth: [{ r: 'AQ', d: 'AQ', t: 'AQ' }] }), 'unsupported', /oth/],
    ['empty oth', (key) => ({ ...key, oth: [] }), 'unsupported', /oth/],
    ['kid a number', (key) => ({ ...key, kid: 1 }), 'malformed', /"kid"/],
    ['kid null', (key) => ({ ...key, kid: null }), 'malformed', /"kid"/],
    ['exp a string', (key) => ({ ...key, exp: '1' }), 'malformed', /"exp"/],
    ['nbf null', (key) => ({ ...key, nbf: null }), 'malformed', /"nbf"/],
    ['iat infinite', (key) => ({ ...key, iat: Infinity }), 'malformed', /"iat"/],
    ['exp not a number', (key) => ({ ...key, exp: NaN }), 'malformed', /"exp"/],
    ['only the public members', () => publicJwk, 'public_only', /private one/],
  ];

  it('accepts the key that the cases are made of, by each way in', async () => {
    assert.deepEqual(verifierOf(privateJwk).getJwks().keys, [publicJwk]);
    assert.deepEqual(new JWETokenVerifier({ keys: privateJwk }).getJwks().keys, [publicJwk]);
    assert.equal((await verifierOf(privateJwk).verifyToken(seal(publicJwk))).sub, 'ada');
    assert.equal(
      Buffer.from((await compactDecrypt(seal(publicJwk), privateJwk)).plaintext).toString(),
      '{"sub":"ada"}',
    );
    assert.equal(
      Buffer.from((await compactDecrypt(seal(publicJwk), { keys: [privateJwk] })).plaintext).toString(),
      '{"sub":"ada"}',
    );
  });
  for (const [name, change, code, message] of [...MEMBERS, ...FOREIGN, ...WRONG_BY, ...CRT, ...STRENGTH, ...PURPOSE]) {
    it(`refuses ${name}`, async () => {
      const key = untyped(change(privateJwk));
      keyRefused(() => verifierOf(key), code, message, secrets);
      keyRefused(() => new JWETokenVerifier({ keys: key }), code, message, secrets);
      keyRefused(() => verifierOf(other, key), code, /key 2/, secrets);
      await assert.rejects(compactDecrypt(seal(publicJwk), key), { name: 'KeyError', code });
      if ('d' in change(privateJwk)) keyRefused(() => publicJwks({ keys: [key] }), code, message, secrets);
    });
  }

  it('accepts what agrees with decryption', async () => {
    const { alg: _alg, use: _use, kid: _kid, iat: _iat, ...bare } = privateJwk;
    const AGREEING: object[] = [
      {},
      { use: 'enc' },
      { key_ops: ['decrypt'] },
      { key_ops: ['unwrapKey'] },
      { key_ops: ['decrypt', 'unwrapKey', 'encrypt', 'wrapKey'] },
      { alg: 'RSA-OAEP-256' },
      { kid: 'a' },
      { kid: '' },
      { iat: 0, nbf: 1.5, exp: 99999999999 },
      { ext: true, x5c: ['AAAA'], 'https://example.com/note': { a: 1 } },
    ];
    for (const members of AGREEING) {
      const key = { ...bare, ...members };
      assert.equal((await verifierOf(key).verifyToken(seal(key))).sub, 'ada', JSON.stringify(members));
    }
  });

  it('accepts 8192 bits and refuses one more', () => {
    const wide = { kty: 'RSA', e: 'AQAB', n: writeUint((1n << 8192n) - 1n) } as const;
    assert.equal(publicJwks({ keys: [wide] }).keys[0]?.n, wide.n);
    keyRefused(() => publicJwks({ keys: [{ ...wide, n: writeUint((1n << 8192n) + 1n) }] }), 'weak', /8193 bits/);
  });

  it('refuses "primes" that are composite although every equation holds', async () => {
    const prime = (bits: number): bigint => generatePrimeSync(bits, { bigint: true });
    let [p, q] = [0n, 0n];
    while (p % 65537n < 2n || q % 65537n < 2n) [p, q] = [prime(512) * prime(512), prime(1040)]; // else e has no inverse
    const composite = assemble(p, q);
    assert.ok(createPrivateKey({ key: { ...composite }, format: 'jwk' }), 'OpenSSL itself takes it');
    keyRefused(() => verifierOf(composite), 'inconsistent', /does not decrypt/);
    keyRefused(
      () => new JWETokenVerifier({ keys: { keys: [privateJwk, { ...composite, kid: 'c' }] } }),
      'inconsistent',
      /does not decrypt/,
    );
  });
});

describe('the import of a set', () => {
  const SETS: [name: string, set: unknown, code: KeyErrorCode][] = [
    ['an empty set', { keys: [] }, 'malformed'],
    ['keys an object', { keys: {} }, 'malformed'],
    ['keys null', { keys: null }, 'malformed'],
    ['keys a string', { keys: 'x' }, 'malformed'],
    ['a set of null', { keys: [null] }, 'malformed'],
    ['a set of strings', { keys: ['x'] }, 'malformed'],
    ['a set of arrays', { keys: [[]] }, 'malformed'],
    ['a hole', { keys: [,] }, 'malformed'],
    ['an empty object', {}, 'unsupported'],
  ];
  for (const [name, set, code] of SETS) {
    it(`refuses ${name}`, async () => {
      keyRefused(() => new JWETokenVerifier({ keys: untyped(set) }), code, /./);
      await assert.rejects(compactDecrypt(seal(publicJwk), untyped(set)), { name: 'KeyError', code });
      keyRefused(() => publicJwks(untyped(set)), code, /./);
      await assert.rejects(encryptToken({}, untyped(set)), { name: 'KeyError', code });
    });
  }
  for (const [name, set] of [
    ['null', null],
    ['a string', 'x'],
    ['an array', []],
    ['a number', 1],
  ] as const) {
    it(`refuses ${name} for a set`, async () => {
      keyRefused(() => new JWETokenVerifier({ keys: untyped(set) }), 'option', /"keys"/);
      await assert.rejects(compactDecrypt(seal(publicJwk), untyped(set)), { name: 'KeyError', code: 'malformed' });
      keyRefused(() => publicJwks(untyped(set)), 'malformed', /JWK/);
      await assert.rejects(encryptToken({}, untyped(set)), { name: 'KeyError', code: 'malformed' });
    });
  }

  it('refuses two keys with one kid, given or by thumbprint', async () => {
    keyRefused(
      () => verifierOf({ ...privateJwk, kid: 'same' }, { ...other, kid: 'same' }),
      'malformed',
      /same "kid"/,
      secrets,
    );
    keyRefused(() => verifierOf(privateJwk, { ...privateJwk, kid: undefined }), 'malformed', /same "kid"/);
    keyRefused(
      () => verifierOf({ ...privateJwk, kid: 'x' }, { ...other, kid: 'x', alg: 'RSA-OAEP' }),
      'malformed',
      /same "kid"/,
    );
    await assert.rejects(compactDecrypt(seal(publicJwk), { keys: [privateJwk, privateJwk] }), {
      name: 'KeyError',
      code: 'malformed',
    });
  });

  it('holds four unexpired keys of each algorithm and not five', async () => {
    const copies = (count: number, members: object): object[] =>
      Array.from({ length: count }, (_, index) => ({
        ...privateJwk,
        kid: `${JSON.stringify(members)}${index}`,
        ...members,
      }));
    const four = copies(4, { alg: 'RSA-OAEP-256' });
    assert.ok(verifierOf(...four));
    assert.ok(verifierOf(...four, ...copies(4, { alg: 'RSA-OAEP' })), 'four of each');
    assert.ok(verifierOf(...four, ...copies(3, { exp: 1 })), 'expired ones do not count');
    keyRefused(() => verifierOf(...four, { ...privateJwk, kid: 'fifth' }), 'too_many', /more than four/);
    keyRefused(
      () => verifierOf(...four, { ...privateJwk, kid: 'fifth', alg: undefined }),
      'too_many',
      /more than four/,
    );
    keyRefused(
      () => verifierOf(...copies(5, { alg: 'RSA-OAEP' })),
      'too_many',
      /more than four unexpired RSA-OAEP keys/,
    );
    await assert.rejects(compactDecrypt(seal(publicJwk), untyped({ keys: copies(5, {}) })), {
      name: 'KeyError',
      code: 'too_many',
    });
    const clock = (now: number): JWETokenVerifier =>
      new JWETokenVerifier({
        keys: { keys: untyped([...four, { ...privateJwk, kid: 'fifth', exp: 1000 }]) },
        now: () => now,
      });
    assert.ok(clock(1000), 'the fifth has just expired');
    keyRefused(() => clock(999), 'too_many', /more than four/);
  });

  it('refuses a set whose keys have all expired', () => {
    const clock = (now: number): JWETokenVerifier =>
      new JWETokenVerifier({
        keys: {
          keys: [
            { ...privateJwk, exp: 1000 },
            { ...other, exp: 999 },
          ],
        },
        now: () => now,
      });
    assert.equal(clock(999.9).getJwks().keys[0]?.kid, privateJwk.kid);
    keyRefused(() => clock(1000), 'expired', /expired/);
  });
});

describe('what is published', () => {
  it('is the newest key whose time has come', () => {
    const keys = [
      { ...privateJwk, kid: 'first', iat: undefined },
      { ...privateJwk, kid: 'iat 100', iat: 100 },
      { ...privateJwk, kid: 'nbf 200', iat: 900, nbf: 200, exp: 300 },
      { ...privateJwk, kid: 'nbf 400', iat: 0, nbf: 400 },
    ];
    for (const order of [keys, keys.toReversed()]) {
      for (const [now, kid] of [
        [0, 'first'],
        [99, 'first'],
        [100, 'iat 100'],
        [199, 'iat 100'],
        [200, 'nbf 200'],
        [299, 'nbf 200'],
        [300, 'iat 100'],
        [399, 'iat 100'],
        [400, 'nbf 400'],
      ] as const) {
        const verifier = new JWETokenVerifier({ keys: { keys: order }, now: () => now });
        assert.deepEqual(
          verifier.getJwks().keys.map((key) => key.kid),
          [kid],
          `at ${now}`,
        );
      }
    }
  });
  it('is the first in the file when no key says when it began', () => {
    const unsaid = (kid: string): object => ({ ...privateJwk, kid, iat: undefined });
    assert.equal(verifierOf(unsaid('a'), unsaid('b'), unsaid('c')).getJwks().keys[0]?.kid, 'a');
    assert.equal(publicJwks(untyped({ keys: [unsaid('b'), unsaid('a')] })).keys[0]?.kid, 'b');
  });
  it('is not told from a set that mixes private and public keys', async () => {
    const { publicJwk: another } = await keyPair('another');
    for (const keys of [
      [privateJwk, another],
      [another, privateJwk],
    ])
      keyRefused(() => publicJwks({ keys }), 'public_only', /needs the private one/);
  });

  it('is the same from publicJwks, which reads the real clock, for private and public sets', () => {
    const now = Math.floor(Date.now() / 1000);
    for (const key of [privateJwk, publicJwk]) {
      const keys = [
        { ...key, kid: 'old', iat: now - 100 },
        { ...key, kid: 'active', iat: now - 50 },
        { ...key, kid: 'future', nbf: now + 1000 },
        { ...key, kid: 'expired', iat: now - 10, exp: now - 1 },
      ];
      assert.deepEqual(
        publicJwks({ keys }).keys.map(({ kid }) => kid),
        ['active'],
      );
      assert.deepEqual(publicJwks({ keys: keys.filter(({ kid }) => kid === 'expired') }), { keys: [] });
    }
  });

  const EXTRA: object[] = [
    {},
    { k: 'secret' },
    { D: 'secret', P: 'secret' },
    { private: { d: 'secret' } },
    { x: 'secret', y: 'secret', crv: 'secret' },
    { toJSON: 'secret' },
    { oth_: 'secret' },
    { x5c: ['secret'] },
    { 'https://example.com/backup-of-d': 'secret' },
    { constructor: 'secret' },
    JSON.parse('{"__proto__":{"d":"secret"}}'),
    { key_ops: ['decrypt'], ext: true, iat: 1, nbf: 2, exp: 99999999999 },
  ];
  for (const extra of EXTRA) {
    it(`holds public members only, whatever else the key file says: ${JSON.stringify(extra)}`, () => {
      const key = Object.assign(Object.create(null), privateJwk, Object.fromEntries(Object.entries(extra)));
      for (const jwks of [publicJwks({ keys: [key] }), publicJwks(key), verifierOf(key).getJwks()]) {
        assert.deepEqual(Object.keys(jwks), ['keys']);
        for (const published of jwks.keys) {
          assert.deepEqual(Object.keys(published).toSorted(), PUBLIC_MEMBERS);
          assert.deepEqual(published, publicJwk);
        }
        const text = JSON.stringify(jwks);
        for (const secret of [...secrets, 'secret']) assert.ok(!text.includes(secret));
      }
    });
  }
  it('cannot be changed by who received it', () => {
    const verifier = verifierOf(privateJwk);
    const { keys } = verifier.getJwks();
    Object.assign(keys[0] ?? {}, { n: 'x', kid: 'x' });
    keys.length = 0;
    assert.deepEqual(verifier.getJwks().keys, [publicJwk]);
  });
  it('cannot be changed by who gave it', async () => {
    const given = { keys: [{ ...privateJwk }] };
    const verifier = new JWETokenVerifier({ keys: given });
    Object.assign(given.keys[0] ?? {}, other);
    given.keys.length = 0;
    assert.deepEqual(verifier.getJwks().keys, [publicJwk]);
    assert.equal((await verifier.verifyToken(seal(publicJwk))).sub, 'ada');
  });
  it('shows nothing private when an error, a verifier or its inspection is printed', async () => {
    const { inspect } = await import('node:util');
    const verifier = verifierOf(privateJwk);
    await verifier.verifyToken(seal(publicJwk));
    for (const text of [
      JSON.stringify(verifier),
      inspect(verifier, { depth: 20, showHidden: true }),
      String(verifier),
    ]) {
      for (const secret of secrets) assert.ok(!text.includes(secret));
    }
  });
  it('refuses unsound public keys', () => {
    const UNSOUND: [object, KeyErrorCode][] = [
      [{ ...publicJwk, e: 'AQ' }, 'weak'],
      [{ ...publicJwk, n: writeUint(readUint(publicJwk.n) - 1n) }, 'weak'],
      [{ ...publicJwk, n: padLeft(publicJwk.n) }, 'malformed'],
      [{ ...publicJwk, use: 'sig' }, 'unsupported'],
      [{ ...publicJwk, key_ops: ['verify'] }, 'unsupported'],
      [{ ...publicJwk, alg: 'RS256' }, 'unsupported'],
      [{ ...publicJwk, kty: 'EC' }, 'unsupported'],
    ];
    for (const [key, code] of UNSOUND) {
      keyRefused(() => publicJwks(untyped({ keys: [key] })), code, /./);
      keyRefused(() => compactEncrypt(Buffer.of(), untyped(key)), code, /recipient/);
    }
    assert.ok(compactEncrypt(Buffer.of(), { ...publicJwk, key_ops: ['wrapKey'] }));
    assert.ok(compactEncrypt(Buffer.of(), { ...publicJwk, key_ops: ['encrypt'] }));
  });
});

describe('jwkThumbprint', () => {
  const RFC_7638 = {
    kty: 'RSA',
    n:
      '0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjB' +
      'ZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8' +
      'KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_' +
      'xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw',
    e: 'AQAB',
    alg: 'RS256',
    kid: '2011-04-29',
  };
  it('gives the examples of RFC 7638 §3.1 and RFC 8037 A.3', () => {
    assert.equal(jwkThumbprint(RFC_7638), 'NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs');
    assert.equal(
      jwkThumbprint({ kty: 'OKP', crv: 'Ed25519', x: '11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo' }),
      'kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k',
    );
  });
  it('gives what jose gives, whatever else the key says and in whatever order', async () => {
    const pairs = [newPair('ec', { namedCurve: 'P-256' }), newPair('ed25519'), newPair('rsa', { modulusLength: 2048 })];
    for (const { privateKey, publicKey } of pairs) {
      const jwk = publicKey.export({ format: 'jwk' });
      const expected = await calculateJwkThumbprint(jwk);
      const reversed = Object.fromEntries(
        Object.entries({
          ...privateKey.export({ format: 'jwk' }),
          kid: 'x',
          use: 'sig',
          alg: 'y',
          iat: 1,
        }).toReversed(),
      );
      assert.equal(jwkThumbprint(untyped(jwk)), expected);
      assert.equal(jwkThumbprint(untyped(reversed)), expected);
    }
    assert.equal(publicJwk.kid, await calculateJwkThumbprint({ kty: 'RSA', n: publicJwk.n, e: publicJwk.e }));
  });
  for (const jwk of [
    {},
    { kty: 'RSA' },
    { kty: 'RSA', n: 'AQAB' },
    { kty: 'RSA', n: 1, e: 'AQAB' },
    { kty: 'EC', crv: 'P-256', x: 'AA' },
    { kty: 'OKP', crv: 'Ed25519' },
    { kty: 'oct', k: 'AA' },
    { kty: 'constructor' },
    { kty: 1 },
  ]) {
    it(`refuses ${JSON.stringify(jwk)}`, () =>
      keyRefused(() => jwkThumbprint(untyped(jwk)), 'malformed', /thumbprint/));
  }
});

describe('generateKeyPair', () => {
  it('makes 4096 bits for RSA-OAEP-256 unless told otherwise, published and named by its thumbprint', async () => {
    const before = Math.floor(Date.now() / 1000);
    const pair = await generateKeyPair();
    assert.equal(
      createPublicKey({ key: { ...pair.publicJwk }, format: 'jwk' }).asymmetricKeyDetails?.modulusLength,
      4096,
    );
    assert.deepEqual(Object.keys(pair.publicJwk).toSorted(), PUBLIC_MEMBERS);
    assert.deepEqual(
      Object.keys(pair.privateJwk).toSorted(),
      [...PUBLIC_MEMBERS, ...PRIVATE_MEMBERS, 'iat'].toSorted(),
    );
    const { alg, use, e, kid } = pair.publicJwk;
    assert.deepEqual([alg, use, e, kid], ['RSA-OAEP-256', 'enc', 'AQAB', jwkThumbprint(pair.publicJwk)]);
    const { iat = 0 } = pair.privateJwk;
    assert.ok(iat >= before && iat <= Date.now() / 1000);
    assert.equal(
      (await verifierOf(pair.privateJwk).verifyToken(await encryptToken({ sub: 'ada' }, pair.publicJwk))).sub,
      'ada',
    );
  });
  it('makes 3072 and 2048 bits for either algorithm', async () => {
    for (const [modulusLength, alg] of [
      [2048, 'RSA-OAEP'],
      [3072, 'RSA-OAEP-256'],
    ] as const) {
      const {
        privateJwk: key,
        publicJwk: { n, alg: said },
      } = await generateKeyPair({ modulusLength, alg });
      assert.deepEqual([readUint(n).toString(2).length, said, key.alg], [modulusLength, alg, alg]);
    }
  });
  it('makes another key each time', async () => {
    const [a, b] = await Promise.all([
      generateKeyPair({ modulusLength: 2048 }),
      generateKeyPair({ modulusLength: 2048 }),
    ]);
    assert.notEqual(a.publicJwk.n, b.publicJwk.n);
  });
  for (const options of [
    { modulusLength: 1024 },
    { modulusLength: 2047 },
    { modulusLength: 0 },
    { modulusLength: '2048' },
    { modulusLength: 16384 },
    { modulusLength: NaN },
    { alg: 'RSA1_5' },
    { alg: 'RS256' },
    { alg: '' },
  ]) {
    it(`refuses ${JSON.stringify(options)}`, () =>
      assert.rejects(
        generateKeyPair(untyped(options)),
        (error) => error instanceof KeyError && error.code === 'option',
      ));
  }
});

describe('compactEncrypt', () => {
  it('refuses what is no key, without quoting it', () => {
    for (const jwk of ['PRIVATE-MEMBER', null, 7, undefined]) {
      assert.throws(
        () => compactEncrypt(Buffer.from('x'), jwk as never),
        (error) => error instanceof KeyError && !error.message.includes('PRIVATE-MEMBER'),
      );
    }
  });
});

// A verifier would refuse most unsound private keys for failing its self-test as well. publicJwks and compactDecrypt
// run none: there the arithmetic alone stands in front of OpenSSL.
describe('a single member of a private key', () => {
  type Member = 'n' | 'd' | 'p' | 'q' | 'dp' | 'dq' | 'qi';
  const wrong: Record<string, (key: Record<Member, bigint>) => Partial<Record<Member, bigint>>> = {
    'p is 1 and q the modulus': ({ n }) => ({ p: 1n, q: n }),
    'q is 1, p the modulus and dp all of d': ({ n, d }) => ({ p: n, q: 1n, dp: d }),
    'd, and dp with it, is wrong modulo p - 1 alone': ({ d, p, q }) => ({ d: d + q - 1n, dp: (d + q - 1n) % (p - 1n) }),
    'd, and dq with it, is wrong modulo q - 1 alone': ({ d, p, q }) => ({ d: d + p - 1n, dq: (d + p - 1n) % (q - 1n) }),
    'dp is congruent but not reduced': ({ dp, p }) => ({ dp: dp + p - 1n }),
    'dq is congruent but not reduced': ({ dq, q }) => ({ dq: dq + q - 1n }),
    'qi is congruent but not reduced': ({ qi, p }) => ({ qi: qi + p }),
    'd is congruent but larger than n': ({ n, d, p, q }) => ({
      d: d + (p - 1n) * (q - 1n) * (n / ((p - 1n) * (q - 1n)) + 1n),
    }),
  };

  for (const [what, change] of Object.entries(wrong)) {
    it(`refuses a private key in which ${what}`, async () => {
      const { n, d, p, q, dp, dq, qi } = privateJwk;
      const changed = change({
        n: readUint(n),
        d: readUint(d),
        p: readUint(p),
        q: readUint(q),
        dp: readUint(dp),
        dq: readUint(dq),
        qi: readUint(qi),
      });
      const key: RsaPrivateJwk = {
        ...privateJwk,
        ...Object.fromEntries(Object.entries(changed).map(([member, value]) => [member, writeUint(value)])),
      };
      const refusal = (error: unknown): boolean => error instanceof KeyError && error.code === 'inconsistent';
      assert.throws(() => publicJwks(key), refusal);
      await assert.rejects(compactDecrypt(compactEncrypt(Buffer.from('{}'), publicJwk), key), refusal);
    });
  }
});

describe('keys in time, outside a verifier', () => {
  it('publishes the key that comes first when no time has come, wherever it stands in the set', async () => {
    const pairs = await Promise.all(['server', 'other', 'third'].map((name) => keyPair(name)));
    const now = Math.floor(Date.now() / 1000);
    for (const order of [
      [0, 1, 2],
      [2, 1, 0],
      [1, 0, 2],
      [1, 2, 0],
    ]) {
      const keys = order.map((n) => ({ ...(pairs[n] ?? assert.fail()).privateJwk, nbf: now + 600 * (n + 1) }));
      assert.deepEqual(
        publicJwks({ keys }).keys.map(({ kid }) => kid),
        [pairs[0]?.privateJwk.kid],
      );
    }
  });

  it('publishes and decrypts outside a verifier with a key until its last second, and not after it', async () => {
    const token = compactEncrypt(Buffer.from('{}'), publicJwk);
    const now = Math.floor(Date.now() / 1000);
    await compactDecrypt(token, { ...privateJwk, exp: now + 100 });
    assert.deepEqual(publicJwks({ ...privateJwk, exp: now }), { keys: [] });
    await assert.rejects(compactDecrypt(token, { ...privateJwk, exp: now }), {
      name: 'AuthError',
      reason: 'no_key',
      status: 503,
    });
  });
});

describe("a single member of an issuer's key", () => {
  const { x = '', y = '' } = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ format: 'jwk' });

  const issuerKeys: [what: string, change: Partial<Jwk>, usable: boolean][] = [
    ['key_ops are to verify', { key_ops: ['verify'] }, true],
    ['key_ops are to sign', { key_ops: ['sign'] }, false],
    ['x has a leading zero octet', { x: padLeft(x) }, false],
    ['y has a leading zero octet', { y: padLeft(y) }, false],
    ['y is padded', { y: `${y}=` }, false],
    ['y is missing', { y: undefined }, false],
  ];

  for (const [what, change, usable] of issuerKeys) {
    it(`${usable ? 'takes' : 'does not take'} an issuer's EC key whose ${what}`, () => {
      const jwks = { keys: [{ kty: 'EC', crv: 'P-256', x, y, ...change }] };
      const trust = (): JWETokenVerifier =>
        new JWETokenVerifier({ keys: privateJwk, audience: 'a', trustedIssuers: [{ issuer: 'i', jwks }] });
      if (usable) assert.ok(trust());
      else assert.throws(trust, { name: 'KeyError', code: 'unsupported' });
    });
  }
});
