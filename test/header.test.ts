// The compact form and its protected header: what is refused before any RSA operation, and what is never used.
import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import {
  compactDecrypt,
  encryptToken,
  generateKeyPair,
  JWETokenVerifier,
  type RefusalReason,
  type RsaPrivateJwk,
  type RsaPublicJwk,
} from 'mcp-auth-middleware';
import { keyPair } from './support/support.js';
import { base64url, oaep, type Recipe, refused, seal, untyped } from './support/tokens.js';

let publicJwk: RsaPublicJwk;
let privateJwk: RsaPrivateJwk;
let verifier: JWETokenVerifier;
before(async () => {
  ({ publicJwk, privateJwk } = await keyPair());
  verifier = new JWETokenVerifier({ keys: { keys: [privateJwk] } });
});

describe('the compact form', () => {
  const WRONG: [name: string, change: (token: string) => unknown][] = [
    ['an empty string', () => ''],
    ['no dot', (token) => token.replaceAll('.', '')],
    ['three dots', (token) => token.split('.').slice(0, 4).join('.')],
    [
      'three dots, the encrypted key left out',
      (token) =>
        token
          .split('.')
          .filter((_, index) => index !== 1)
          .join('.'),
    ],
    ['five dots', (token) => `${token}.`],
    ['five dots with a sixth segment', (token) => `${token}.AAAA`],
    ['a dot in front', (token) => `.${token}`],
    ['only dots', () => '....'],
    ['only the header', (token) => `${token.split('.')[0]}....`],
    ['an empty header', (token) => token.replace(/^[^.]+/, '')],
    ['an empty encrypted key (alg dir)', (token) => token.replace(/\.[^.]+/, '.')],
    ['an empty tag', (token) => token.replace(/[^.]+$/, '')],
    ['two tokens', (token) => `${token} ${token}`],
    ['two tokens with a comma', (token) => `${token}, ${token}`],
    [
      'the flattened JSON serialization',
      (token) => {
        const [header, encryptedKey, iv, ciphertext, tag] = token.split('.');
        return JSON.stringify({ protected: header, encrypted_key: encryptedKey, iv, ciphertext, tag });
      },
    ],
    ['quotes around it', (token) => `"${token}"`],
    ['undefined', () => undefined],
    ['null', () => null],
    ['a number', () => 1],
    ['a String object', (token) => new String(token)],
    ['an array', (token) => [token]],
    ['bytes', (token) => Buffer.from(token)],
    ['an object with toString', (token) => ({ toString: () => token })],
    ['an object with split and length', (token) => ({ length: 1, split: () => token.split('.') })],
  ];

  it('accepts the token that the cases are made of', async () => {
    assert.equal((await verifier.verifyToken(seal(publicJwk))).sub, 'ada');
  });
  for (const [name, change] of WRONG) {
    it(`rejects ${name}`, async () => {
      const wrong = untyped(change(seal(publicJwk)));
      await refused(verifier.verifyToken(wrong), 'malformed');
      await refused(verifier.authenticate(wrong), 'malformed');
      await refused(compactDecrypt(wrong, privateJwk), 'malformed');
    });
  }

  it('takes 16,384 characters and not one more', async () => {
    const sized = (length: number): string => {
      // n octets are ceil(4n/3) characters: not every number, until a longer header moves what the plaintext is left.
      for (const typ of ['a', 'ab', 'abc', 'abcd']) {
        const characters = length - seal(publicJwk, { header: { typ }, plaintext: '' }).length;
        const octets = Math.floor((characters * 3) / 4);
        if (Math.ceil((octets * 4) / 3) === characters)
          return seal(publicJwk, { header: { typ }, plaintext: `{"a":"${'x'.repeat(octets - 8)}"}` });
      }
      return assert.fail(`no token of ${length} characters`);
    };
    for (const length of [16_383, 16_384, 16_385]) assert.equal(sized(length).length, length);
    for (const length of [16_383, 16_384])
      assert.match(String((await verifier.verifyToken(sized(length)))['a']), /^x+$/);
    await refused(verifier.verifyToken(sized(16_385)), 'malformed');
    await refused(compactDecrypt(sized(16_385), privateJwk), 'malformed');
    await refused(verifier.verifyToken(sized(20_000)), 'malformed');
  });

  it('never makes a token that servers refuse for its length', async () => {
    const claims = (length: number): object => ({ a: 'x'.repeat(length) });
    const room = 16_384 - (await encryptToken(claims(10_000), publicJwk)).length;
    let longest = 10_000 + Math.floor((room * 3) / 4) - 2;
    while ((await encryptToken(claims(longest + 1), publicJwk).catch(() => '')) !== '') longest++;
    assert.equal(
      (await verifier.verifyToken(await encryptToken(claims(longest), publicJwk)))['a'],
      'x'.repeat(longest),
    );
    await assert.rejects(encryptToken(claims(longest + 1), publicJwk), { name: 'TypeError', message: /16384/ });
  });
});

describe('the protected header', () => {
  it('takes 2,048 characters and not one more', async () => {
    const octets = Buffer.from(seal(publicJwk, { header: { pad: '' } }).split('.')[0] ?? '', 'base64url').length;
    const sized = (length: number): string => seal(publicJwk, { header: { pad: 'x'.repeat(length - octets) } });
    assert.equal(sized(1536).indexOf('.'), 2048);
    assert.equal(sized(1537).indexOf('.'), 2050); // no octets have 2,049
    assert.equal((await verifier.verifyToken(sized(1536))).sub, 'ada');
    await refused(verifier.verifyToken(sized(1537)), 'malformed');
  });

  const REFUSED: [name: string, header: Recipe['header'], reason?: RefusalReason][] = [
    ['no alg', { alg: undefined }],
    ['the other RSA algorithm than the key says', { alg: 'RSA-OAEP' }],
    ['RSA-OAEP-384', { alg: 'RSA-OAEP-384' }],
    ['RSA-OAEP-512', { alg: 'RSA-OAEP-512' }],
    ['RSA1_5', { alg: 'RSA1_5' }],
    ['dir', { alg: 'dir' }],
    ['A256KW', { alg: 'A256KW' }],
    ['A256GCMKW', { alg: 'A256GCMKW', iv: 'AAAAAAAAAAAAAAAA', tag: 'AAAAAAAAAAAAAAAAAAAAAA' }],
    ['ECDH-ES', { alg: 'ECDH-ES', epk: { kty: 'EC', crv: 'P-256' } }],
    ['PBES2 with a million rounds', { alg: 'PBES2-HS256+A128KW', p2c: 1_000_000, p2s: 'AAAA' }],
    ['alg none', { alg: 'none' }],
    ['alg in lower case', { alg: 'rsa-oaep-256' }],
    ['alg with a space', { alg: 'RSA-OAEP-256 ' }],
    ['alg with a NUL', { alg: 'RSA-OAEP-256\0' }],
    ['an empty alg', { alg: '' }],
    ['alg null', { alg: null }],
    ['alg an array', { alg: ['RSA-OAEP-256'] }],
    ['alg a name every object has', { alg: 'constructor' }],
    ['alg __proto__', { alg: '__proto__' }],
    ['no enc', { enc: undefined }],
    ['A128GCM', { enc: 'A128GCM' }],
    ['A192GCM', { enc: 'A192GCM' }],
    ['A128CBC-HS256', { enc: 'A128CBC-HS256' }],
    ['A256CBC-HS512', { enc: 'A256CBC-HS512' }],
    ['enc in lower case', { enc: 'a256gcm' }],
    ['enc an array', { enc: ['A256GCM'] }],
    ['enc null', { enc: null }],
    ['zip DEF', { zip: 'DEF' }],
    ['zip of any value', { zip: null }],
    ['zip empty', { zip: '' }],
    ['crit of an unknown extension', { crit: ['exp'], exp: 1 }],
    ['crit of b64', { crit: ['b64'], b64: true }],
    ['crit of registered names', { crit: ['alg', 'enc'] }],
    ['an empty crit', { crit: [] }],
    ['crit null', { crit: null }],
    ['kid a number', { kid: 1 }],
    ['kid null', { kid: null }],
    ['kid an object', { kid: {} }],
    ['kid an array of the right one', { kid: ['right'] }],
    ['kid true', { kid: true }],
    ['cty a number', { cty: 1 }],
    ['cty an array', { cty: ['JWT'] }],
    ['typ a number', { typ: 1 }],
    ['typ an object', { typ: {} }],
    ['an unknown kid', { kid: 'another' }, 'unknown_key'],
    ['an empty kid', { kid: '' }, 'unknown_key'],
    ['kid __proto__', { kid: '__proto__' }, 'unknown_key'],
    ['a path as kid', { kid: '../../../../dev/null' }, 'unknown_key'],
  ];
  for (const [name, header, reason = 'malformed'] of REFUSED) {
    it(`rejects ${name}`, async () => {
      const token = seal(publicJwk, { header });
      await refused(verifier.verifyToken(token), reason);
      await refused(compactDecrypt(token, privateJwk), reason);
    });
  }

  it('rejects alg, enc and kid under __proto__, which must not become inherited', async () => {
    await refused(
      verifier.verifyToken(seal(publicJwk, { header: '{"__proto__":{"alg":"RSA-OAEP-256","enc":"A256GCM"}}' })),
      'malformed',
    );
    await refused(
      verifier.verifyToken(seal(publicJwk, { header: '{"enc":"A256GCM","__proto__":{"alg":"RSA-OAEP-256"}}' })),
      'malformed',
    );
  });

  it('rejects the key in the case of another letter of its kid', async () => {
    const kid = publicJwk.kid ?? '';
    const swapped = kid.replace(/[a-z]/, (letter) => letter.toUpperCase());
    assert.notEqual(swapped, kid);
    await refused(verifier.verifyToken(seal(publicJwk, { header: { kid: swapped } })), 'unknown_key');
    await refused(verifier.verifyToken(seal(publicJwk, { header: { kid: `${kid} ` } })), 'unknown_key');
  });

  // Each of these, taken at its word, would bring the attacker's key or make the server fetch or compute something.
  const UNUSED: [name: string, header: (foreign: RsaPublicJwk) => object][] = [
    ['jwk', (foreign) => ({ jwk: foreign })],
    ['jku', () => ({ jku: 'http://127.0.0.1:9/jwks.json' })],
    ['x5u', () => ({ x5u: 'http://127.0.0.1:9/cert.pem' })],
    ['x5c', () => ({ x5c: ['AAAA'], x5t: 'AAAA', 'x5t#S256': 'AAAA' })],
    ['p2c', () => ({ p2c: 1_000_000_000, p2s: 'AAAA' })],
    ['apu, epk, iv and tag', () => ({ apu: 'AAAA', epk: {}, iv: 'AAAA', tag: 'AAAA' })],
    ['parameters nobody knows', () => ({ b64: false, constructor: 1, toString: null, 'x-y': [1, { z: 2 }] })],
    ['a copy of a claim that need not be true', () => ({ exp: 1, nbf: 9_999_999_999, jti: 'x', scope: 'admin' })],
  ];
  for (const [name, header] of UNUSED) {
    it(`never uses ${name}`, async () => {
      const foreign = await keyPair('foreign');
      assert.deepEqual(
        { ...(await verifier.verifyToken(seal(publicJwk, { header: header(foreign.publicJwk) }))) },
        { sub: 'ada' },
      );
      const { alg, kid } = publicJwk;
      const token = seal(foreign.publicJwk, { header: { ...header(foreign.publicJwk), alg, kid } });
      await refused(verifier.verifyToken(token), 'undecryptable', 'encrypted to a foreign key');
    });
  }

  // RFC 7519 §5.3: who decides by the header alone, such as a router, must not be told another user.
  const CLAIMS = { iss: 'i', sub: 'ada', aud: ['a', 'b'], exp: 4_000_000_000 };
  const TRUE: object[] = [
    { iss: 'i' },
    { sub: 'ada' },
    { aud: ['a', 'b'] },
    { iss: 'i', sub: 'ada', aud: ['a', 'b'] },
    { exp: 1, nbf: 9_999_999_999, jti: 'x', scope: 'admin' },
  ];
  const FALSE: object[] = [
    { iss: 'j' },
    { iss: '' },
    { iss: null },
    { iss: ['i'] },
    { sub: 'eve' },
    { sub: 'Ada' },
    { sub: 'ada ' },
    { sub: null },
    { sub: 1 },
    { aud: 'a' },
    { aud: ['a'] },
    { aud: ['b', 'a'] },
    { aud: ['a', 'b', 'c'] },
    { aud: { 0: 'a', 1: 'b' } },
    { aud: [] },
    { iss: 'i', sub: 'ada', aud: ['c'] },
  ];
  for (const copies of TRUE) {
    it(`takes copies of claims that are true: ${JSON.stringify(copies)}`, async () =>
      assert.equal((await verifier.verifyToken(seal(publicJwk, { header: copies, plaintext: CLAIMS }))).sub, 'ada'));
  }
  for (const copies of FALSE) {
    it(`refuses copies of claims that differ: ${JSON.stringify(copies)}`, () =>
      refused(verifier.verifyToken(seal(publicJwk, { header: copies, plaintext: CLAIMS })), 'claims'));
  }
  it('refuses a copy of a claim that there is not', async () => {
    for (const copies of [{ iss: 'i' }, { sub: 'ada' }, { aud: 'a' }])
      await refused(verifier.verifyToken(seal(publicJwk, { header: copies, plaintext: {} })), 'claims');
  });
  it('compares copies with the whole claims set, not with the member that is the user', async () => {
    const owner = new JWETokenVerifier({ keys: privateJwk, claimsMember: 'data' });
    const plaintext = { sub: 'outer', data: { sub: 'inner' } };
    assert.equal((await owner.verifyToken(seal(publicJwk, { header: { sub: 'outer' }, plaintext }))).sub, 'inner');
    await refused(owner.verifyToken(seal(publicJwk, { header: { sub: 'inner' }, plaintext })), 'claims');
  });

  it('reads kid, cty and typ as what they are', async () => {
    const { protectedHeader } = await compactDecrypt(
      seal(publicJwk, { header: { cty: 'text/plain', typ: 'JOSE' } }),
      privateJwk,
    );
    assert.deepEqual(
      { ...protectedHeader },
      { alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: publicJwk.kid, cty: 'text/plain', typ: 'JOSE' },
    );
    assert.equal(
      (await verifier.verifyToken(seal(publicJwk, { header: { typ: 'at+jwt', cty: 'application/json' } }))).sub,
      'ada',
    );
  });

  it('takes the algorithm from the key alone', async () => {
    const other = await keyPair('server', 'RSA-OAEP');
    const { alg: _unsaid, ...silent } = privateJwk;
    const { alg: _alsoUnsaid, ...silentPublic } = publicJwk;
    const wrapped = (alg: string, key: RsaPublicJwk): string =>
      seal(key, { header: { alg }, wrap: (jwk, cek) => oaep({ ...jwk, alg }, cek) });
    const ACCEPTED: [string, object, RsaPublicJwk, string][] = [
      ['RSA-OAEP-256', privateJwk, publicJwk, 'RSA-OAEP'],
      ['RSA-OAEP', other.privateJwk, other.publicJwk, 'RSA-OAEP-256'],
      ['RSA-OAEP-256', silent, silentPublic, 'RSA-OAEP'],
    ];
    for (const [accepted, key, recipient, rejected] of ACCEPTED) {
      const owner = new JWETokenVerifier({ keys: { keys: [untyped(key)] } });
      assert.equal((await owner.verifyToken(wrapped(accepted, recipient))).sub, 'ada');
      await refused(
        owner.verifyToken(wrapped(rejected, recipient)),
        'malformed',
        `${rejected} to a key for ${accepted}`,
      );
      // The header says what the key wants, the encrypted key was made the other way.
      await refused(
        owner.verifyToken(
          seal(recipient, { header: { alg: accepted }, wrap: (jwk, cek) => oaep({ ...jwk, alg: rejected }, cek) }),
        ),
        'undecryptable',
      );
    }
  });

  it('gives a key without kid its thumbprint', async () => {
    const {
      privateJwk: { kid: _none, ...nameless },
      publicJwk: { kid: thumbprint },
    } = await generateKeyPair({ modulusLength: 2048 });
    const owner = new JWETokenVerifier({ keys: { keys: [nameless] } });
    const { keyId } = await owner.authenticate(seal(nameless, { header: { kid: thumbprint } }));
    assert.equal(keyId, thumbprint);
    assert.equal((await owner.authenticate(seal(nameless))).keyId, thumbprint);
    await refused(owner.verifyToken(seal(nameless, { header: { kid: 'another' } })), 'unknown_key');
  });

  it('authenticates the header as it was received, not as it would be written', async () => {
    const spaced = `{ "kid" : ${JSON.stringify(publicJwk.kid)} ,\n "enc":"A256GCM", "alg":"RSA\\u002dOAEP-256" }`;
    assert.equal((await verifier.verifyToken(seal(publicJwk, { header: spaced }))).sub, 'ada');
    const canonical = base64url(JSON.stringify(JSON.parse(spaced)));
    await refused(
      verifier.verifyToken(seal(publicJwk, { header: spaced, aad: canonical })),
      'undecryptable',
      'AAD of the same header written anew',
    );
    await refused(verifier.verifyToken(seal(publicJwk, { aad: '' })), 'undecryptable', 'no AAD');
    await refused(
      verifier.verifyToken(seal(publicJwk, { header: spaced, aad: spaced })),
      'undecryptable',
      'AAD of the decoded header',
    );
  });
});
