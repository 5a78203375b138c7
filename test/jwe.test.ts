// Encryption and decryption: what belongs together opens, and everything else fails in the same way.
import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import {
  compactDecrypt as joseDecrypt,
  CompactEncrypt,
  decodeProtectedHeader,
  EncryptJWT,
  exportJWK,
  generateKeyPair as joseKeyPair,
  importJWK,
  jwtDecrypt,
} from 'jose';
import {
  compactDecrypt,
  compactEncrypt,
  encryptToken,
  generateKeyPair,
  type JwkSet,
  JWETokenVerifier,
  KeyError,
  type RefusalReason,
  type RsaPrivateJwk,
  type RsaPublicJwk,
} from 'mcp-auth-middleware';
import { keyPair } from './support/support.js';
import {
  base64url,
  edit,
  editBytes,
  flip,
  keyRefused,
  oaep,
  type OaepDefect,
  pkcs1,
  type Recipe,
  refused,
  seal,
  SEGMENTS,
  untyped,
} from './support/tokens.js';

const ALGS = ['RSA-OAEP-256', 'RSA-OAEP'] as const;
const SAYING = Buffer.from('all that is gold does not glitter');

let publicJwk: RsaPublicJwk;
let privateJwk: RsaPrivateJwk;
let verifier: JWETokenVerifier;
before(async () => {
  ({ publicJwk, privateJwk } = await keyPair());
  verifier = new JWETokenVerifier({ keys: { keys: [privateJwk] }, cache: false });
});

const segmentsOf = (token: string): Buffer[] => token.split('.').map((text) => Buffer.from(text, 'base64url'));
const lengthOf = (token: string, segment: (typeof SEGMENTS)[number]): number =>
  segmentsOf(token)[SEGMENTS.indexOf(segment)]?.length ?? 0;

describe('compactEncrypt and compactDecrypt', () => {
  for (const alg of ALGS) {
    it(`give back any octets with ${alg}`, async () => {
      const pair = await keyPair('server', alg);
      for (const plaintext of [
        Buffer.of(),
        Buffer.of(0),
        Buffer.from(Array.from({ length: 256 }, (_, octet) => octet)),
        Buffer.alloc(11_000, 'x'),
        new Uint8Array([1, 2, 3]),
      ]) {
        const opened = await compactDecrypt(compactEncrypt(plaintext, pair.publicJwk), pair.privateJwk);
        assert.ok(Buffer.from(opened.plaintext).equals(plaintext));
        assert.deepEqual({ ...opened.protectedHeader }, { alg, enc: 'A256GCM', kid: pair.publicJwk.kid });
      }
    });
  }
  it('take no octet outside the given view', async () => {
    const middle = new Uint8Array(new TextEncoder().encode('0123456789').buffer, 2, 3);
    const { plaintext } = await compactDecrypt(compactEncrypt(middle, publicJwk), privateJwk);
    assert.equal(Buffer.from(plaintext).toString(), '234');
    assert.equal(plaintext.buffer.byteLength, 3, 'nor gives a view of a shared pool back');
  });
  it('use a fresh key and IV each time, of the sizes A256GCM has', () => {
    const tokens = Array.from({ length: 50 }, () => compactEncrypt(SAYING, publicJwk));
    for (const [index, segment] of SEGMENTS.entries()) {
      const values = new Set(tokens.map((token) => token.split('.')[index]));
      assert.equal(values.size, segment === 'protected header' ? 1 : 50, segment);
    }
    const [token = ''] = tokens;
    assert.deepEqual(
      SEGMENTS.slice(1).map((segment) => lengthOf(token, segment)),
      [256, 12, SAYING.length, 16],
    );
  });
  it('say cty and typ when asked, and nothing else', async () => {
    const token = compactEncrypt(SAYING, publicJwk, { cty: 'JWT', typ: 'JOSE' });
    assert.deepEqual(decodeProtectedHeader(token), {
      alg: 'RSA-OAEP-256',
      enc: 'A256GCM',
      kid: publicJwk.kid,
      cty: 'JWT',
      typ: 'JOSE',
    });
  });
  for (const [name, value] of Object.entries({
    zip: 'DEF',
    alg: 'none',
    enc: 'A128GCM',
    kid: 'x',
    crit: ['exp'],
    Cty: 'JWT',
    constructor: 1,
    '': 1,
  })) {
    it(`refuse another header parameter: ${JSON.stringify(name)}`, () =>
      keyRefused(
        () => compactEncrypt(SAYING, publicJwk, untyped({ cty: 'JWT', [name]: value })),
        'option',
        new RegExp(`unknown option "${name}"; there are cty, typ$`),
      ));
  }
  it('take a header that is an object', () => {
    for (const header of [null, 'JWT', [], 1])
      keyRefused(() => compactEncrypt(SAYING, publicJwk, untyped(header)), 'option', /header must be an object/);
  });
  it('take a cty and a typ that are strings', () => {
    for (const header of [{ cty: 5 }, { typ: null }])
      keyRefused(() => compactEncrypt(SAYING, publicJwk, untyped(header)), 'option', /cty and typ must be strings/);
  });
  it('refuse a kid that makes the header longer than servers take', async () => {
    const kid = 'k'.repeat(1536 - JSON.stringify({ alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: '' }).length);
    const longest = compactEncrypt(SAYING, { ...publicJwk, kid });
    const { plaintext } = await compactDecrypt(longest, { ...privateJwk, kid });
    assert.deepEqual(Buffer.from(plaintext), SAYING);
    const longer = { ...publicJwk, kid: `${kid}k` };
    keyRefused(() => compactEncrypt(SAYING, longer), 'malformed', /^kid, cty and typ are too long/);
  });
  it('name the key by its thumbprint when it has no kid', () => {
    const { kid, ...nameless } = publicJwk;
    assert.equal(decodeProtectedHeader(compactEncrypt(SAYING, nameless)).kid, kid);
  });
  it('refuse to encrypt to a key with any one private member', async () => {
    for (const member of ['d', 'p', 'q', 'dp', 'dq', 'qi'] as const) {
      const half = { ...publicJwk, [member]: privateJwk[member] };
      const isPrivate = (error: unknown): boolean => error instanceof KeyError && error.code === 'private';
      assert.throws(() => compactEncrypt(SAYING, half), isPrivate, member);
      for (const recipient of [half, { keys: [half] }, { keys: [publicJwk, half] }])
        await assert.rejects(encryptToken({}, recipient), isPrivate, member);
    }
  });

  it('refuse to encrypt to a private key', () => {
    assert.throws(
      () => compactEncrypt(SAYING, privateJwk),
      (error) => error instanceof KeyError && error.code === 'private',
    );
  });
});

describe('jose', () => {
  for (const alg of ALGS) {
    it(`opens what this encrypts, and is opened by it: ${alg}, keys from here`, async () => {
      const pair = await keyPair('server', alg);
      const opened = await joseDecrypt(
        compactEncrypt(SAYING, pair.publicJwk, { cty: 'a' }),
        await importJWK(pair.privateJwk, alg),
      );
      assert.ok(SAYING.equals(opened.plaintext));
      const token = await new CompactEncrypt(SAYING)
        .setProtectedHeader({ alg, enc: 'A256GCM', kid: pair.publicJwk.kid ?? '', typ: 'b' })
        .encrypt(await importJWK(pair.publicJwk, alg));
      assert.ok(SAYING.equals((await compactDecrypt(token, pair.privateJwk)).plaintext));
    });
    it(`opens what this encrypts, and is opened by it: ${alg}, keys from there`, async () => {
      const keys = await joseKeyPair(alg, { extractable: true, modulusLength: 2048 });
      const [theirPrivate, theirPublic] = await Promise.all([exportJWK(keys.privateKey), exportJWK(keys.publicKey)]);
      const ours: RsaPrivateJwk = untyped({ ...theirPrivate, alg });
      const token = compactEncrypt(SAYING, untyped({ ...theirPublic, alg }));
      assert.ok(SAYING.equals((await joseDecrypt(token, keys.privateKey)).plaintext));
      const theirs = await new CompactEncrypt(SAYING)
        .setProtectedHeader({ alg, enc: 'A256GCM' })
        .encrypt(keys.publicKey);
      assert.ok(SAYING.equals((await compactDecrypt(theirs, ours)).plaintext));
    });
    it(`agrees about claims: ${alg}`, async () => {
      const pair = await keyPair('server', alg);
      const owner = new JWETokenVerifier({ keys: pair.privateJwk });
      const theirs = await new EncryptJWT({ name: 'Ada', roles: ['admin'] })
        .setProtectedHeader({ alg, enc: 'A256GCM' })
        .setSubject('ada')
        .setIssuedAt()
        .setExpirationTime('1h')
        .encrypt(await importJWK(pair.publicJwk, alg));
      const { sub, name, roles } = await owner.verifyToken(theirs);
      assert.deepEqual([sub, name, roles], ['ada', 'Ada', ['admin']]);
      const ours = await encryptToken({ sub: 'ada', name: 'Ada' }, pair.publicJwk);
      const { payload } = await jwtDecrypt(ours, await importJWK(pair.privateJwk, alg));
      assert.deepEqual(payload, { ...(await owner.verifyToken(ours)) });
    });
    for (const enc of ['A128GCM', 'A192GCM', 'A128CBC-HS256', 'A256CBC-HS512']) {
      it(`makes ${alg} with ${enc}, which is refused here by policy`, async () => {
        const pair = await keyPair('server', alg);
        const token = await new CompactEncrypt(SAYING)
          .setProtectedHeader({ alg, enc })
          .encrypt(await importJWK(pair.publicJwk, alg));
        await refused(compactDecrypt(token, pair.privateJwk), 'malformed');
      });
    }
  }
});

/** The token of the table's recipient with exactly one defect. */
type Defect = [name: string, token: () => string, reason: RefusalReason];
const sealed =
  (recipe: Recipe): (() => string) =>
  () =>
    seal(publicJwk, recipe);
const wrapped = (defect: OaepDefect): (() => string) => sealed({ wrap: (jwk, cek) => oaep(jwk, cek, defect) });
const bytesOf =
  (segment: (typeof SEGMENTS)[number], change: (octets: Buffer) => Buffer): (() => string) =>
  () =>
    editBytes(seal(publicJwk), segment, change);
const modulus = (): Buffer => Buffer.from(publicJwk.n, 'base64url');
const raw = (octets: () => Buffer): (() => string) => sealed({ wrap: octets });
const number = (value: bigint): Buffer => Buffer.from(value.toString(16).padStart(512, '0'), 'hex');
const n = (): bigint => BigInt(`0x${modulus().toString('hex')}`);

const UNDECRYPTABLE: Defect[] = [
  ['OAEP with a label', wrapped({ label: 'label' }), 'undecryptable'],
  ['OAEP with SHA-1', wrapped({ hash: 'sha1' }), 'undecryptable'],
  ['OAEP with SHA-384', wrapped({ hash: 'sha384' }), 'undecryptable'],
  ['OAEP with SHA-256 and MGF1 of SHA-1 (the default of Java)', wrapped({ mgfHash: 'sha1' }), 'undecryptable'],
  ['OAEP with SHA-1 and MGF1 of SHA-256', wrapped({ hash: 'sha1', mgfHash: 'sha256' }), 'undecryptable'],
  ['OAEP whose first octet is 1 (Manger)', wrapped({ first: 1 }), 'undecryptable'],
  [
    'OAEP with a wrong octet in lHash',
    wrapped({
      spoil: (block) => {
        block.writeUInt8(block.readUInt8(0) ^ 1, 0);
      },
    }),
    'undecryptable',
  ],
  [
    'OAEP with an octet among the zeros',
    wrapped({
      spoil: (block) => {
        block.writeUInt8(2, 40);
      },
    }),
    'undecryptable',
  ],
  [
    'OAEP with 2 in place of the 1',
    wrapped({
      spoil: (block) => {
        block.writeUInt8(2, block.length - 33);
      },
    }),
    'undecryptable',
  ],
  [
    'OAEP without the 1, all zeros',
    wrapped({
      spoil: (block) => {
        block.fill(0, 32);
      },
    }),
    'undecryptable',
  ],
  [
    'OAEP with the 1 an octet early, which makes the CEK 33 octets',
    wrapped({
      spoil: (block) => {
        block.writeUInt8(1, block.length - 34);
      },
    }),
    'undecryptable',
  ],
  ['PKCS #1 v1.5 padding', sealed({ wrap: pkcs1 }), 'undecryptable'],
  [
    'a CEK that is not encrypted at all',
    sealed({ wrap: (_jwk, cek) => Buffer.concat([Buffer.alloc(224), cek]) }),
    'undecryptable',
  ],
  ['an encrypted key of 0', raw(() => number(0n)), 'undecryptable'],
  ['an encrypted key of 1', raw(() => number(1n)), 'undecryptable'],
  ['an encrypted key of n - 1', raw(() => number(n() - 1n)), 'undecryptable'],
  ['an encrypted key of n', raw(modulus), 'undecryptable'],
  ['an encrypted key of n + 1', raw(() => number(n() + 1n)), 'undecryptable'],
  ['an encrypted key of ones', raw(() => Buffer.alloc(256, 0xff)), 'undecryptable'],
  ['an encrypted key with a changed last bit', bytesOf('encrypted key', flip), 'undecryptable'],
  [
    'an encrypted key that is the right one plus n, where it still fits',
    () => {
      for (;;) {
        const token = seal(publicJwk);
        const sum = BigInt(`0x${segmentsOf(token)[1]?.toString('hex')}`) + n();
        if (sum < 1n << 2048n) return editBytes(token, 'encrypted key', () => number(sum));
      }
    },
    'undecryptable',
  ],
  ...[0, 1, 15, 16, 24, 31, 33, 48, 64].map((octets): Defect => [
    `a CEK of ${octets} octets`,
    sealed({ cek: Buffer.alloc(octets, 7) }),
    'undecryptable',
  ]),
  ['the ciphertext with a changed last bit', bytesOf('ciphertext', flip), 'undecryptable'],
  ['the ciphertext an octet shorter', bytesOf('ciphertext', (octets) => octets.subarray(1)), 'undecryptable'],
  [
    'the ciphertext an octet longer',
    bytesOf('ciphertext', (octets) => Buffer.concat([octets, Buffer.of(0)])),
    'undecryptable',
  ],
  ['no ciphertext', bytesOf('ciphertext', () => Buffer.of()), 'undecryptable'],
  ['the tag with a changed last bit', bytesOf('tag', flip), 'undecryptable'],
  [
    'the tag with a changed first bit',
    bytesOf('tag', (octets) => Buffer.concat([Buffer.of(octets.readUInt8(0) ^ 0x80), octets.subarray(1)])),
    'undecryptable',
  ],
  ['a tag of zeros', bytesOf('tag', () => Buffer.alloc(16)), 'undecryptable'],
  ['the IV with a changed last bit', bytesOf('iv', flip), 'undecryptable'],
  ['an IV of zeros', bytesOf('iv', () => Buffer.alloc(12)), 'undecryptable'],
  ...(['encrypted key', 'iv', 'ciphertext', 'tag'] as const).map((segment): Defect => [
    `the ${segment} of another token`,
    () => {
      const donor = seal(publicJwk, { plaintext: { sub: 'eve' } }).split('.')[SEGMENTS.indexOf(segment)] ?? '';
      return edit(seal(publicJwk), segment, () => donor);
    },
    'undecryptable',
  ]),
  [
    'a member added to the header afterwards',
    () =>
      edit(seal(publicJwk), 'protected header', (text) =>
        base64url(`${Buffer.from(text, 'base64url').toString().slice(0, -1)},"typ":"JWT"}`),
      ),
    'undecryptable',
  ],
];

const MALFORMED: Defect[] = [
  ['an encrypted key an octet shorter', bytesOf('encrypted key', (octets) => octets.subarray(1)), 'malformed'],
  [
    'an encrypted key an octet longer',
    bytesOf('encrypted key', (octets) => Buffer.concat([octets, Buffer.of(0)])),
    'malformed',
  ],
  [
    'an encrypted key with a zero octet in front',
    bytesOf('encrypted key', (octets) => Buffer.concat([Buffer.of(0), octets])),
    'malformed',
  ],
  [
    'an encrypted key that lost its leading zero octet',
    () => {
      for (;;) {
        const token = seal(publicJwk);
        if (segmentsOf(token)[1]?.[0] === 0) return editBytes(token, 'encrypted key', (octets) => octets.subarray(1));
      }
    },
    'malformed',
  ],
  ['no encrypted key', bytesOf('encrypted key', () => Buffer.of()), 'malformed'],
  ['the encrypted key twice', bytesOf('encrypted key', (octets) => Buffer.concat([octets, octets])), 'malformed'],
  ...[0, 1, 8, 11, 13, 16, 32].map((octets): Defect => [
    `an IV of ${octets} octets, sealed with it`,
    () =>
      octets ? seal(publicJwk, { iv: Buffer.alloc(octets, 1) }) : editBytes(seal(publicJwk), 'iv', () => Buffer.of()),
    'malformed',
  ]),
  ...[4, 8, 12, 13, 14, 15].map((octets): Defect => [
    `a tag of ${octets} octets, which GCM itself would verify`,
    sealed({ tagLength: octets }),
    'malformed',
  ]),
  ...[0, 1, 4, 15].map((octets): Defect => [
    `a tag cut to ${octets} octets`,
    bytesOf('tag', (tag) => tag.subarray(0, octets)),
    'malformed',
  ]),
  ['a tag of 17 octets', bytesOf('tag', (tag) => Buffer.concat([tag, Buffer.of(0)])), 'malformed'],
  ['a tag of 32 octets', bytesOf('tag', (tag) => Buffer.concat([tag, tag])), 'malformed'],
];

describe('a token with one defect', () => {
  it('is accepted without it, whatever made its parts', async () => {
    for (const recipe of [
      {},
      {
        wrap: (jwk: RsaPublicJwk, cek: Buffer) =>
          oaep(jwk, cek, { hash: 'sha256', mgfHash: 'sha256', label: '', first: 0 }),
      },
      { tagLength: 16 },
      { cek: Buffer.alloc(32, 7) },
      { iv: Buffer.alloc(12) },
    ]) {
      assert.equal((await verifier.verifyToken(seal(publicJwk, recipe))).sub, 'ada');
    }
  });
  it('is accepted when its encrypted key begins with a zero octet', async () => {
    let token = '';
    while (segmentsOf(token)[1]?.[0] !== 0) token = seal(publicJwk);
    assert.equal((await verifier.verifyToken(token)).sub, 'ada');
  });
  for (const [name, make, reason] of [...UNDECRYPTABLE, ...MALFORMED]) {
    it(`is rejected: ${name}`, async () => {
      const token = make();
      await refused(verifier.verifyToken(token), reason);
      await refused(verifier.authenticate(token), reason);
      await refused(compactDecrypt(token, privateJwk), reason);
    });
  }
  it('is rejected with PKCS #1 v1.5 or the other hash by a key for RSA-OAEP', async () => {
    const pair = await keyPair('server', 'RSA-OAEP');
    const owner = new JWETokenVerifier({ keys: pair.privateJwk });
    assert.equal((await owner.verifyToken(seal(pair.publicJwk))).sub, 'ada');
    await refused(owner.verifyToken(seal(pair.publicJwk, { wrap: pkcs1 })), 'undecryptable');
    for (const defect of [{ hash: 'sha256' }, { mgfHash: 'sha256' }, { label: 'label' }, { first: 1 }] as const) {
      await refused(
        owner.verifyToken(seal(pair.publicJwk, { wrap: (jwk, cek) => oaep(jwk, cek, defect) })),
        'undecryptable',
        JSON.stringify(defect),
      );
    }
  });

  it('fails the same way to the last property, whether OAEP, the size of the CEK or GCM failed', async () => {
    const seen = new Map<string, string[]>();
    for (const [name, make] of UNDECRYPTABLE) {
      const error: unknown = await verifier.verifyToken(make()).catch((thrown: unknown) => thrown);
      assert.ok(error instanceof Error);
      const properties = Object.fromEntries(
        Reflect.ownKeys(error).map((key) => [String(key), Reflect.get(error, key)]),
      );
      const facts = JSON.stringify({ ...properties, text: String(error) });
      seen.set(facts, [...(seen.get(facts) ?? []), name]);
    }
    assert.equal(seen.size, 1, JSON.stringify([...seen.values()]));
  });
});

describe('every edit of one character', () => {
  const ALPHABET = [
    ...'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_',
    '.',
    '=',
    '+',
    '/',
    ' ',
    '\n',
    '\0',
    'é',
  ];

  it('is rejected with the one answer: replaced, inserted, deleted, swapped, cut off', async () => {
    const owner = new JWETokenVerifier({ keys: privateJwk, cache: false, maxPending: 1000 });
    const token = seal(publicJwk, { header: { kid: undefined }, plaintext: { a: 1 } });
    assert.equal((await owner.verifyToken(token))['a'], 1);

    function* edits(): Generator<string> {
      for (let at = 0; at <= token.length; at++) {
        const [before, here, next] = [token.slice(0, at), token.charAt(at), token.charAt(at + 1)];
        for (const character of ALPHABET) {
          yield before + character + token.slice(at);
          if (at < token.length && character !== here) yield before + character + token.slice(at + 1);
        }
        if (at === token.length) return;
        yield before;
        yield before + token.slice(at + 1);
        if (next !== here && next !== '') yield before + next + here + token.slice(at + 2);
      }
    }
    const answers = new Map<string, number>();
    let made = 0;
    let accepted = 0;
    const source = edits();
    const work = async (): Promise<void> => {
      for (const wrong of source) {
        made++;
        try {
          await owner.verifyToken(wrong);
          accepted++;
        } catch (error) {
          const { name, code, status, message } = untyped<{
            name: string;
            code: string;
            status: number;
            message: string;
          }>(error);
          const answer = [name, code, status, message].join();
          answers.set(answer, (answers.get(answer) ?? 0) + 1);
        }
      }
    };
    await Promise.all(Array.from({ length: 32 }, work));
    const least = token.length * 2 * (ALPHABET.length - 1);
    assert.ok(made > least, `${made} edits of ${token.length} characters`);
    assert.deepEqual(
      [accepted, Object.fromEntries(answers)],
      [0, { 'AuthError,invalid_token,401,The access token is invalid': made }],
    );
    assert.equal((await owner.verifyToken(token))['a'], 1, 'the token itself is still good');
  });
});

describe('a set of keys', () => {
  it('opens with the named key, and without a name with whichever fits', async () => {
    const [second, sha1, wide] = await Promise.all([
      keyPair('second'),
      keyPair('server', 'RSA-OAEP'),
      generateKeyPair({ modulusLength: 3072 }),
    ]);
    const pairs = [await keyPair(), second, sha1, wide];
    const keys: JwkSet = { keys: pairs.map((pair) => pair.privateJwk) };
    const owner = new JWETokenVerifier({ keys });
    for (const { publicJwk: recipient } of pairs) {
      for (const kid of [recipient.kid, undefined]) {
        const { keyId } = await owner.authenticate(seal(recipient, { header: { kid } }));
        assert.equal(keyId, recipient.kid);
        assert.ok((await compactDecrypt(seal(recipient, { header: { kid } }), keys)).plaintext);
      }
      for (const {
        publicJwk: { kid, alg },
      } of pairs.filter(({ publicJwk: wrong }) => wrong.kid !== recipient.kid)) {
        const sameKind = recipient !== wide.publicJwk && kid !== wide.publicJwk.kid && alg === recipient.alg;
        await refused(
          owner.verifyToken(seal(recipient, { header: { kid } })),
          sameKind ? 'undecryptable' : 'malformed',
          `${recipient.kid} named ${kid}`,
        );
      }
    }
    const stranger = await keyPair('stranger');
    await refused(owner.verifyToken(seal(stranger.publicJwk)), 'unknown_key');
    await refused(owner.verifyToken(seal(stranger.publicJwk, { header: { kid: undefined } })), 'undecryptable');
  });
  it('does not open with an expired key, from that very second on', async () => {
    const other = await keyPair('second');
    let now = 1000;
    const owner = new JWETokenVerifier({
      keys: { keys: [{ ...privateJwk, exp: 2000 }, other.privateJwk] },
      now: () => now,
    });
    const [token, nameless] = [seal(publicJwk), seal(publicJwk, { header: { kid: undefined } })];
    now = 1999.9;
    assert.equal((await owner.verifyToken(token)).sub, 'ada');
    assert.equal((await owner.verifyToken(nameless)).sub, 'ada');
    now = 2000;
    await refused(owner.verifyToken(token), 'unknown_key', 'although it is cached');
    await refused(owner.verifyToken(nameless), 'undecryptable');
    assert.equal((await owner.verifyToken(seal(other.publicJwk))).sub, 'ada');
  });
  it('answers 503, not 401, when all its keys have expired', async () => {
    let now = 1000;
    const owner = new JWETokenVerifier({ keys: { keys: [{ ...privateJwk, exp: 2000 }] }, now: () => now });
    now = 2000;
    for (const header of [{}, { kid: undefined }, { kid: 'unknown' }]) {
      await assert.rejects(owner.verifyToken(seal(publicJwk, { header })), {
        name: 'AuthError',
        code: 'temporarily_unavailable',
        status: 503,
        reason: 'no_key',
      });
    }
    await refused(owner.verifyToken('x'), 'malformed');
    assert.deepEqual(owner.getJwks(), { keys: [] });
    await assert.rejects(compactDecrypt(seal(publicJwk), { keys: [{ ...privateJwk, exp: 1 }] }), {
      reason: 'no_key',
      status: 503,
    });
  });
  it('is read anew by compactDecrypt when the caller changed it', async () => {
    const other = await keyPair('second');
    const keys: JwkSet = { keys: [privateJwk] };
    assert.ok(await compactDecrypt(seal(publicJwk), keys));
    keys.keys = [other.privateJwk];
    await refused(compactDecrypt(seal(publicJwk), keys), 'unknown_key');
    assert.ok(await compactDecrypt(seal(other.publicJwk), keys));
  });
});

describe('encryptToken', () => {
  const open = async (token: string): Promise<Record<string, unknown>> =>
    JSON.parse(Buffer.from((await compactDecrypt(token, privateJwk)).plaintext).toString());
  const seconds = (): number => Math.floor(Date.now() / 1000);
  /** Runs in one second of the clock, so that times can be compared exactly. */
  async function inOneSecond<T>(act: () => Promise<T>): Promise<[T, number]> {
    for (;;) {
      const start = seconds();
      const result = await act();
      if (seconds() === start) return [result, start];
    }
  }

  it('sets iat, exp an hour later, and kid', async () => {
    const [token, now] = await inOneSecond(() => encryptToken({ sub: 'ada' }, publicJwk));
    assert.deepEqual(await open(token), { iat: now, exp: now + 3600, sub: 'ada' });
    assert.deepEqual(decodeProtectedHeader(token), { alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: publicJwk.kid });
  });
  it('sets the lifetime asked for, or none', async () => {
    const [token, now] = await inOneSecond(() => encryptToken({}, publicJwk, { expiresIn: 60 }));
    assert.deepEqual(await open(token), { iat: now, exp: now + 60 });
    const [endless, then] = await inOneSecond(() => encryptToken({}, publicJwk, { expiresIn: null }));
    assert.deepEqual(await open(endless), { iat: then });
  });
  it('lets claims given win', async () => {
    const claims = { iat: 1, exp: 2, nbf: 3, iss: 'a', aud: ['b'], jti: 'c' };
    assert.deepEqual(await open(await encryptToken(claims, publicJwk)), claims);
    const [token, now] = await inOneSecond(() => encryptToken({ iat: 1 }, publicJwk, { expiresIn: 60 }));
    assert.deepEqual(await open(token), { iat: 1, exp: now + 60 });
  });
  it('refuses exp together with expiresIn', async () => {
    for (const expiresIn of [60, null])
      await assert.rejects(encryptToken({ exp: 1 }, publicJwk, { expiresIn }), { name: 'TypeError', message: /exp/ });
  });
  for (const expiresIn of [0, -1, NaN, Infinity, '60', {}, true]) {
    it(`refuses a lifetime of ${String(expiresIn)}`, () =>
      assert.rejects(encryptToken({}, publicJwk, { expiresIn: untyped(expiresIn) }), {
        name: 'TypeError',
        message: /expiresIn/,
      }));
  }
  for (const claims of [null, undefined, 'text', 1, [], [1]]) {
    it(`refuses ${JSON.stringify(claims)} as claims`, () =>
      assert.rejects(encryptToken(untyped(claims), publicJwk), { name: 'TypeError' }));
  }
  it('takes a lifetime of one second', async () => {
    const { iat, exp } = await open(await encryptToken({}, publicJwk, { expiresIn: 1 }));
    assert.equal(Number(exp) - Number(iat), 1);
  });
  it('refuses a private key as recipient, alone and anywhere in a set', async () => {
    const other = await keyPair('second');
    for (const recipient of [
      privateJwk,
      { keys: [privateJwk] },
      { keys: [publicJwk, other.privateJwk] },
      { keys: [privateJwk, other.publicJwk] },
    ]) {
      await assert.rejects(
        encryptToken({}, untyped(recipient)),
        (error) => error instanceof KeyError && error.code === 'private',
      );
    }
  });
  it('takes the first usable encryption key of a set', async () => {
    const [other, sha1] = await Promise.all([keyPair('second'), keyPair('server', 'RSA-OAEP')]);
    const unusable: object[] = [
      { kty: 'EC', crv: 'P-256', x: 'AA', y: 'AA' },
      { kty: 'OKP', crv: 'Ed25519', x: 'AA' },
      { ...other.publicJwk, use: 'sig' },
      { ...other.publicJwk, alg: 'RS256' },
      { ...other.publicJwk, key_ops: ['verify'] },
      { ...other.publicJwk, e: 'Aw' },
      { kty: 'RSA', n: 'AQAB', e: 'AQAB' },
      {},
    ];
    for (const [keys, kid] of [
      [[publicJwk, other.publicJwk], publicJwk.kid],
      [[other.publicJwk, publicJwk], other.publicJwk.kid],
      [[...unusable, publicJwk, other.publicJwk], publicJwk.kid],
      [[...unusable, sha1.publicJwk, publicJwk], sha1.publicJwk.kid],
    ])
      assert.equal(decodeProtectedHeader(await encryptToken({}, untyped({ keys }))).kid, kid);
    for (const key of unusable) await assert.rejects(encryptToken({}, untyped({ keys: [key] })), KeyError);
    await assert.rejects(encryptToken({}, { keys: [] }), { name: 'KeyError', code: 'malformed' });
  });
  it('encrypts to the set a server publishes', async () => {
    assert.equal((await verifier.verifyToken(await encryptToken({ sub: 'ada' }, verifier.getJwks()))).sub, 'ada');
  });
});
