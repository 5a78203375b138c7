// The claims of an authentic token: their types, the seconds at which they begin and end, and the object they become.
import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import {
  type Auth,
  type AuthUser,
  encryptToken,
  JWETokenVerifier,
  type JwkSet,
  type PrivateSigningJwk,
  type RefusalReason,
  type RsaPublicJwk,
  type VerifierOptions,
} from 'mcp-auth-middleware';
import { keyPair } from './support/support.js';
import { type Content, keyRefused, newPair, refused, seal, untyped } from './support/tokens.js';

const NOW = 1_700_000_000;
let keys: JwkSet;
let publicJwk: RsaPublicJwk;
before(async () => {
  const pair = await keyPair();
  publicJwk = pair.publicJwk;
  keys = { keys: [pair.privateJwk] };
});

const verifierAt = (now: number, options: VerifierOptions = {}): JWETokenVerifier =>
  new JWETokenVerifier({ keys, now: () => now, ...options });
const verify = (claims: Content, options: VerifierOptions = {}, now = NOW): Promise<AuthUser> =>
  verifierAt(now, options).verifyToken(seal(publicJwk, { plaintext: claims }));
const authenticate = (claims: Content, options: VerifierOptions = {}): Promise<Auth> =>
  verifierAt(NOW, options).authenticate(seal(publicJwk, { plaintext: claims }));

describe('the types of registered claims', () => {
  const WRONG: Record<string, unknown[]> = {
    exp: ['1800000000', null, true, [1_800_000_000], {}, ''],
    nbf: ['1600000000', null, true, [1_600_000_000], {}],
    iat: ['1600000000', null, false, [1_600_000_000], {}],
    iss: [1, null, true, ['https://issuer.example'], {}],
    sub: [1, null, true, ['ada'], {}],
    jti: [1, null, true, ['a'], {}],
    aud: [1, null, true, {}, [1], ['a', 1], [['a']], [null], ['a', undefined]],
  };
  const RIGHT: object[] = [
    {},
    { exp: NOW + 1 },
    { exp: NOW + 0.5 },
    { exp: 2 ** 53 - 1 },
    { nbf: -1 },
    { nbf: 0, iat: 0 },
    { iat: NOW - 0.25 },
    { iss: '' },
    { sub: '' },
    { sub: 'ada', jti: 'a' },
    { aud: '' },
    { aud: 'a' },
    { aud: [] },
    { aud: ['a', 'b'] },
    { scope: 1, scp: { a: 1 }, azp: null, client_id: [] },
  ];
  for (const claims of RIGHT)
    it(`are fine in ${JSON.stringify(claims)}`, async () =>
      assert.equal(JSON.stringify(await verify(claims)), JSON.stringify(claims)));
  for (const [name, values] of Object.entries(WRONG)) {
    for (const value of values)
      it(`are not in ${JSON.stringify({ [name]: value })}`, () => refused(verify({ [name]: value }), 'claims'));
  }
  for (const text of [
    '{"exp":1e999}',
    '{"exp":-1e999}',
    '{"nbf":-1e999}',
    '{"iat":-1e999}',
    '{"any":1e999}',
    '{"any":[{"deep":-1e999}]}',
  ]) {
    it(`are not where a number is more than JSON can carry: ${text}`, () => refused(verify(text), 'claims'));
  }
});

describe('times', () => {
  type Case = [name: string, claims: object, options: VerifierOptions, at: number, outcome: 'accepted' | RefusalReason];
  const none = { clockTolerance: 0 };
  const CASES: Case[] = [
    ['exp is the first second that fails', { exp: NOW }, none, NOW - 1, 'accepted'],
    ['exp is the first second that fails', { exp: NOW }, none, NOW - 0.001, 'accepted'],
    ['exp is the first second that fails', { exp: NOW }, none, NOW, 'expired'],
    ['exp is the first second that fails', { exp: NOW }, none, NOW + 1, 'expired'],
    ['a fraction of exp counts', { exp: NOW + 0.5 }, none, NOW + 0.25, 'accepted'],
    ['a fraction of exp counts', { exp: NOW + 0.5 }, none, NOW + 0.5, 'expired'],
    ['exp has 30 s of tolerance', { exp: NOW }, {}, NOW + 29.999, 'accepted'],
    ['exp has 30 s of tolerance', { exp: NOW }, {}, NOW + 30, 'expired'],
    ['exp has the tolerance given', { exp: NOW }, { clockTolerance: 300 }, NOW + 299, 'accepted'],
    ['exp has the tolerance given', { exp: NOW }, { clockTolerance: 300 }, NOW + 300, 'expired'],
    ['exp has the tolerance given', { exp: NOW }, { clockTolerance: 0.5 }, NOW + 0.5, 'expired'],
    ['exp 0 is a time like any other', { exp: 0 }, {}, NOW, 'expired'],
    ['a negative exp is a time like any other', { exp: -1 }, {}, NOW, 'expired'],
    ['nbf is the first second that passes', { nbf: NOW }, none, NOW - 0.001, 'not_yet_valid'],
    ['nbf is the first second that passes', { nbf: NOW }, none, NOW, 'accepted'],
    ['nbf has 30 s of tolerance', { nbf: NOW }, {}, NOW - 30.001, 'not_yet_valid'],
    ['nbf has 30 s of tolerance', { nbf: NOW }, {}, NOW - 30, 'accepted'],
    ['nbf has the tolerance given', { nbf: NOW }, { clockTolerance: 300 }, NOW - 301, 'not_yet_valid'],
    ['nbf has the tolerance given', { nbf: NOW }, { clockTolerance: 300 }, NOW - 300, 'accepted'],
    ['iat is not in the future', { iat: NOW }, none, NOW - 0.001, 'not_yet_valid'],
    ['iat is not in the future', { iat: NOW }, none, NOW, 'accepted'],
    ['iat has 30 s of tolerance', { iat: NOW }, {}, NOW - 30.001, 'not_yet_valid'],
    ['iat has 30 s of tolerance', { iat: NOW }, {}, NOW - 30, 'accepted'],
    ['exp is after iat', { iat: NOW, exp: NOW }, {}, NOW, 'claims'],
    ['exp is after iat', { iat: NOW, exp: NOW - 1 }, {}, NOW, 'claims'],
    ['exp is after iat', { iat: NOW, exp: NOW + 1 }, {}, NOW, 'accepted'],
    ['exp is after iat, although both are within tolerance', { iat: NOW + 20, exp: NOW + 10 }, {}, NOW, 'claims'],
    ['exp is after iat, also when both are long past', { iat: NOW - 100, exp: NOW - 200 }, {}, NOW, 'claims'],
    ['nbf may be after iat', { iat: NOW - 10, nbf: NOW, exp: NOW + 1 }, {}, NOW, 'accepted'],
    ['a token without exp is taken', {}, {}, NOW, 'accepted'],
    ['a token without exp is refused where it is required', {}, { requireExp: true }, NOW, 'claims'],
    ['a token with exp is taken where it is required', { exp: NOW + 1 }, { requireExp: true }, NOW, 'accepted'],
    ['maxTokenAge counts from iat', { iat: NOW - 60 }, { ...none, maxTokenAge: 60 }, NOW, 'accepted'],
    ['maxTokenAge counts from iat', { iat: NOW - 60.001 }, { ...none, maxTokenAge: 60 }, NOW, 'expired'],
    ['maxTokenAge has the tolerance', { iat: NOW - 90 }, { maxTokenAge: 60 }, NOW, 'accepted'],
    ['maxTokenAge has the tolerance', { iat: NOW - 90.001 }, { maxTokenAge: 60 }, NOW, 'expired'],
    ['maxTokenAge counts whatever exp says', { iat: NOW - 1000, exp: NOW + 1000 }, { maxTokenAge: 60 }, NOW, 'expired'],
    ['maxTokenAge requires iat', { exp: NOW + 1 }, { maxTokenAge: 60 }, NOW, 'claims'],
    ['an earlier exp ends a young token', { iat: NOW - 100, exp: NOW - 50 }, { maxTokenAge: 600 }, NOW, 'expired'],
  ];
  for (const [name, claims, options, at, outcome] of CASES) {
    it(`${name}: ${JSON.stringify({ ...claims, ...options })} at ${at - NOW} s is ${outcome}`, async () => {
      const result = verify(claims, options, at);
      if (outcome === 'accepted') assert.deepEqual({ ...(await result) }, claims);
      else await refused(result, outcome);
    });
  }

  it('are judged anew at every use of a token, cached or not', async () => {
    for (const cache of [{ maxEntries: 10 }, false] as const) {
      let now = NOW;
      const verifier = new JWETokenVerifier({ keys, now: () => now, cache, clockTolerance: 0, maxTokenAge: 100 });
      const token = seal(publicJwk, { plaintext: { nbf: NOW + 10, iat: NOW, exp: NOW + 20 } });
      for (const [at, outcome] of [
        [0, 'not_yet_valid'],
        [10, undefined],
        [19.9, undefined],
        [20, 'expired'],
        [9, 'not_yet_valid'],
        [15, undefined],
        [21, 'expired'],
      ] as const) {
        now = NOW + at;
        if (outcome) await refused(verifier.verifyToken(token), outcome, `at ${at}`);
        else assert.equal((await verifier.verifyToken(token)).exp, NOW + 20, `at ${at}`);
      }
    }
  });
  for (const clockTolerance of [-1, 301, NaN, Infinity, '30', null]) {
    it(`refuse a tolerance of ${String(clockTolerance)}`, () =>
      keyRefused(() => verifierAt(NOW, untyped({ clockTolerance })), 'option', /"clockTolerance".*0 to 300/));
  }
  for (const maxTokenAge of [0, -1, NaN, Infinity, '60', null]) {
    it(`refuse a maximal age of ${String(maxTokenAge)}`, () =>
      keyRefused(() => verifierAt(NOW, untyped({ maxTokenAge })), 'option', /"maxTokenAge"/));
  }
});

describe('the audience', () => {
  const CASES: [aud: unknown, audience: string | string[] | undefined, accepted: boolean][] = [
    [undefined, undefined, true],
    ['any', undefined, true],
    [['any'], undefined, true],
    ['us', 'us', true],
    ['us', ['them', 'us'], true],
    [['them', 'us'], 'us', true],
    [['a', 'us'], ['us', 'b'], true],
    [undefined, 'us', false],
    ['', 'us', false],
    [[], 'us', false],
    ['them', 'us', false],
    [['a', 'b'], ['us', 'c'], false],
    ['US', 'us', false],
    ['us ', 'us', false],
    ['us/', 'us', false],
    ['u', 'us', false],
    ['usa', 'us', false],
    ['them us', 'us', false],
    ['them,us', 'us', false],
    ['*', 'us', false],
    ['https://us.example/mcp', 'https://us.example/mcp', true],
    ['https://us.example/mcp/', 'https://us.example/mcp', false],
    ['https://us.example', 'https://us.example/mcp', false],
    [['length'], 'us', false],
    ['0', ['us'], false],
    ['__proto__', 'us', false],
  ];
  for (const [aud, audience, accepted] of CASES) {
    const whom = JSON.stringify(audience) ?? 'whoever asks for none';
    it(`${JSON.stringify(aud) ?? 'none'} ${accepted ? 'is' : 'is not'} for ${whom}`, async () => {
      const result = verify({ aud, sub: 'ada' }, audience === undefined ? {} : { audience });
      if (accepted) assert.equal((await result).sub, 'ada');
      else await refused(result, 'audience');
    });
  }
  it('cannot be added to by who gave it', async () => {
    const audience = ['us'];
    const verifier = verifierAt(NOW, { audience });
    audience.push('them');
    assert.equal((await verifier.verifyToken(seal(publicJwk, { plaintext: { aud: 'us' } }))).aud, 'us');
    await refused(verifier.verifyToken(seal(publicJwk, { plaintext: { aud: 'them' } })), 'audience');
  });
  for (const audience of ['', [], [''], ['a', ''], 1, [1], null, {}]) {
    it(`refuses ${JSON.stringify(audience)} as an option`, () =>
      keyRefused(() => verifierAt(NOW, untyped({ audience })), 'option', /"audience"/));
  }
});

describe('the size of claims', () => {
  /** An object of so many levels, itself the first. */
  const deep = (levels: number, open: string, close: string): string =>
    `{"a":${open.repeat(levels - 1)}${close.repeat(levels - 1)}}`;
  it('may be 32 levels deep and not 33', async () => {
    for (const [open, close] of [
      ['[', ']'],
      ['{"a":', '}'],
    ] as const) {
      const text = (levels: number): string =>
        open === '[' ? deep(levels, open, close) : `${open.repeat(levels)}1${close.repeat(levels)}`;
      assert.ok(await verify(text(32)));
      await refused(verify(text(33)), 'claims', open);
      await refused(verify(text(1000)), 'claims', open);
    }
  });
  it('may be 1,000 values and not 1,001, the claims object the first', async () => {
    const list = (values: number): string => JSON.stringify({ a: Array.from({ length: values - 2 }, () => 1) });
    const object = (values: number): string =>
      JSON.stringify(Object.fromEntries(Array.from({ length: values - 1 }, (_, index) => [`c${index}`, null])));
    const nested = (values: number): string =>
      JSON.stringify({ a: Array.from({ length: (values - 2) / 2 }, () => [true]) });
    for (const make of [list, object]) {
      assert.ok(await verify(make(1000)));
      await refused(verify(make(1001)), 'claims');
    }
    assert.ok(await verify(nested(1000)));
    await refused(verify(nested(1002)), 'claims');
  });
  it('is not what makes the server fail: five thousand brackets are one refusal', async () => {
    await refused(verify(`{"a":${'['.repeat(5000)}${']'.repeat(5000)}}`), 'claims');
    await refused(verify(`{"a":${'['.repeat(10_000)}`), 'claims');
    await refused(verify(`{"a":[${'[],'.repeat(3000)}[]]}`), 'claims');
  });
});

describe('integers that JSON cannot carry', () => {
  const MOST = '9007199254740991';
  const BEYOND = [
    '9007199254740992',
    '9007199254740993', // which JavaScript reads as the one above
    '-9007199254740992',
    '-9007199254740993',
    '12345678901234567890',
    '1e16',
    '1E308',
    '9007199254740992.0',
    '900719925474099300000e-5',
    `1${'0'.repeat(300)}`,
  ];
  const WITHIN = [MOST, `-${MOST}`, '9007199254740991.0', '9.007199254740991e15', '0', '-0', '0.1', '1e15', '5e-324'];
  const PLACES: [name: string, place: (numeral: string) => string][] = [
    ['a claim', (numeral) => `{"id":${numeral}}`],
    ['a claim beside sub', (numeral) => `{"sub":"ada","tenant":${numeral}}`],
    ['an array', (numeral) => `{"ids":[1,${numeral}]}`],
    ['an object', (numeral) => `{"org":{"id":${numeral}}}`],
    ['30 levels down', (numeral) => `{"a":${'[{"a":'.repeat(15)}${numeral}${'}]'.repeat(15)}}`],
    ['a claim named __proto__', (numeral) => `{"__proto__":${numeral}}`],
    ['scope', (numeral) => `{"scope":${numeral}}`],
  ];
  for (const [name, place] of PLACES) {
    it(`are refused, for a rounded id is another user’s: in ${name}`, async () => {
      for (const numeral of BEYOND) await refused(verify(place(numeral)), 'unsafe_integer', numeral);
      for (const numeral of WITHIN) assert.ok(await verify(place(numeral)), numeral);
    });
  }
  it('are refused in times as well, and in the member that is the user', async () => {
    for (const name of ['exp', 'iat', 'nbf']) await refused(verify(`{"${name}":${BEYOND[0]}}`), 'unsafe_integer', name);
    const options = { claimsMember: 'data' };
    await refused(verify(`{"data":{"id":${BEYOND[1]}}}`, options), 'unsafe_integer');
    await refused(verify(`{"data":{},"id":${BEYOND[1]}}`, options), 'unsafe_integer');
    assert.equal((await verify(`{"data":{"id":${MOST}}}`, options))['id'], Number(MOST));
  });
  it('are refused for what they are also where the types of claims are wrong', () =>
    refused(verify(`{"sub":${BEYOND[1]}}`), 'unsafe_integer'));
});

describe('cnf', () => {
  it('is refused whatever it is: nobody asks for the proof here', async () => {
    for (const cnf of [{ jkt: 'x' }, { jwk: {} }, { 'x5t#S256': 'x' }, {}, null, '', 0, false, []])
      await refused(verify({ sub: 'ada', cnf }), 'cnf', JSON.stringify(cnf));
    await refused(verify({ cnf: {}, data: { sub: 'ada' } }, { claimsMember: 'data' }), 'cnf');
  });
  it('is a claim as any other below the top level', async () => {
    assert.equal((await verify({ sub: 'ada', org: { cnf: { jkt: 'x' } }, Cnf: 1, cnf2: 2 })).sub, 'ada');
    assert.equal((await verify({ data: { sub: 'ada', cnf: {} } }, { claimsMember: 'data' })).sub, 'ada');
  });
});

describe('claims that no server takes', () => {
  const WRONG: object[] = [
    { sub: 1 },
    { sub: null },
    { sub: ['ada'] },
    { iss: 7 },
    { jti: {} },
    { aud: 1 },
    { aud: ['a', 1] },
    { aud: { a: 1 } },
    { exp: '1800000000' },
    { exp: null },
    { exp: new Date(NOW * 1000) },
    { exp: Infinity },
    { nbf: 'now' },
    { iat: true },
    { id: 2 ** 53 },
    { ids: [1, -(2 ** 60)] },
    { org: { id: 12345678901234567890 } },
    { cnf: { jkt: 'x' } },
    { list: Array.from({ length: 1001 }, () => 0) },
    { deep: JSON.parse('['.repeat(40) + ']'.repeat(40)) },
  ];
  for (const claims of WRONG) {
    it(`are not minted: ${JSON.stringify(claims).slice(0, 60)}`, async () => {
      const { privateKey } = newPair('ed25519');
      const key = untyped<PrivateSigningJwk>(privateKey.export({ format: 'jwk' }));
      for (const options of [{}, { sign: { key, issuer: 'i', audience: 'a' } }])
        await assert.rejects(encryptToken(claims, publicJwk, options), {
          name: 'TypeError',
          message: /^No server takes these claims: iss, sub and jti are strings, .* no cnf$/,
        });
    });
  }
  it('are times in the wrong order, and a signed token without exp or audience', async () => {
    const { privateKey } = newPair('ed25519');
    const key = untyped<PrivateSigningJwk>(privateKey.export({ format: 'jwk' }));
    const sign = { key, issuer: 'i', audience: 'a' };
    const name = 'TypeError';
    const order = { name, message: 'No server takes these claims: exp must be after iat' };
    for (const claims of [{ iat: 4_000_000_000 }, { iat: NOW, exp: NOW }, { iat: NOW, exp: NOW - 1 }])
      for (const options of [{}, { sign }]) await assert.rejects(encryptToken(claims, publicJwk, options), order);
    const signed = { name, message: 'No server takes these claims: a signed token needs an exp and an aud' };
    await assert.rejects(encryptToken({ sub: 'ada' }, publicJwk, { sign, expiresIn: null }), signed);
    for (const aud of [[], '', ['']]) await assert.rejects(encryptToken({ aud }, publicJwk, { sign }), signed);
  });
  it('are none of those that a server takes', async () => {
    for (const claims of [
      { id: 2 ** 53 - 1 },
      { sub: undefined },
      { aud: [] },
      { scope: ['a'], scp: 1 },
      { iat: 0, exp: 1 },
    ])
      assert.match(await encryptToken(claims, publicJwk), /^[\w-]+(\.[\w-]+){4}$/);
  });
});

describe('claims with a toJSON of their own', () => {
  class User {
    #name = 'Ada';
    toJSON(): object {
      return { sub: 'ada', name: this.#name };
    }
  }
  it('are what it gives, and get their times like any other', async () => {
    const verifier = new JWETokenVerifier({ keys });
    const itself: object = { sub: 'ada', name: 'Ada', toJSON: () => itself };
    class Model {
      sub = 'ada';
      name = 'Ada';
      toJSON = (): object => ({ ...this });
    }
    const given = { id: 1, toJSON: () => ({ sub: 'ada', name: 'Ada', method: () => 'none' }) };
    for (const claims of [new User(), given, itself, new Model()]) {
      const user = await verifier.verifyToken(await encryptToken(claims, publicJwk, { expiresIn: 60 }));
      assert.deepEqual(Object.keys(user).toSorted(), ['exp', 'iat', 'name', 'sub']);
      assert.deepEqual([user.sub, user['name'], Number(user.exp) - Number(user.iat)], ['ada', 'Ada', 60]);
    }
  });
  it('are refused where that is no object', async () => {
    for (const value of ['ada', null, undefined, 1, ['ada']])
      await assert.rejects(encryptToken({ sub: 'ada', toJSON: () => value }, publicJwk), {
        name: 'TypeError',
        message: 'claims must be an object, also after its toJSON()',
      });
  });
});

describe('what is known beside the claims', () => {
  it('has no members for what the token does not say', async () => {
    const auth = await authenticate({ sub: 'ada' }, {});
    assert.deepEqual(Object.keys(auth).toSorted(), ['keyId', 'scopes', 'signed', 'token', 'user']);
    const expiring = await authenticate({ sub: 'ada', exp: NOW + 100 }, {});
    assert.equal(expiring.expiresAt, NOW + 100);
  });
});

describe('claimsMember', () => {
  const options = { claimsMember: 'data', audience: 'us' };
  const outside = { aud: 'us', exp: NOW + 100, iat: NOW };
  it('takes user, sub and scopes from the member, times, iss and aud from outside', async () => {
    const auth = await authenticate(
      {
        ...outside,
        iss: 'outer',
        sub: 'eve',
        scope: 'outer',
        data: {
          sub: 'ada',
          name: 'Ada',
          scope: 'a b',
          exp: 1,
          nbf: NOW + 1000,
          iat: NOW + 1000,
          aud: 'them',
          iss: 'inner',
        },
      },
      options,
    );
    assert.deepEqual(
      { ...auth.user },
      { sub: 'ada', name: 'Ada', scope: 'a b', exp: 1, nbf: NOW + 1000, iat: NOW + 1000, aud: 'them', iss: 'inner' },
    );
    assert.deepEqual(
      [auth.scopes, auth.expiresAt, auth.signed, auth.issuer],
      [['a', 'b'], NOW + 100, false, undefined],
    );
  });
  const REFUSED: [name: string, claims: object, reason: RefusalReason][] = [
    ['no member', {}, 'claims'],
    ['null', { data: null }, 'claims'],
    ['an array', { data: [{ sub: 'ada' }] }, 'claims'],
    ['a string', { data: '{"sub":"ada"}' }, 'claims'],
    ['a number', { data: 1 }, 'claims'],
    ['a sub that is no string', { data: { sub: 1 } }, 'claims'],
    ['expired outside', { iat: NOW - 200, exp: NOW - 100, data: {} }, 'expired'],
    ['not valid yet outside', { nbf: NOW + 100, data: {} }, 'not_yet_valid'],
    ['aud only inside', { aud: undefined, data: { aud: 'us' } }, 'audience'],
    ['exp outside of the wrong type', { exp: '1', data: {} }, 'claims'],
  ];
  for (const [name, claims, reason] of REFUSED)
    it(`is refused: ${name}`, () => refused(verify({ ...outside, ...claims }, options), reason));
  it('is not looked for among what objects inherit', async () => {
    for (const claimsMember of ['constructor', '__proto__', 'toString'])
      await refused(verify({ sub: 'ada' }, { claimsMember }), 'claims', claimsMember);
    assert.equal((await verify('{"__proto__":{"sub":"ada"}}', { claimsMember: '__proto__' })).sub, 'ada');
  });
});

describe('scopes', () => {
  const CASES: [claims: object, scopes: string[]][] = [
    [{}, []],
    [{ scope: 'a' }, ['a']],
    [{ scope: 'a b  c ' }, ['a', 'b', 'c']],
    [{ scope: '' }, []],
    [{ scp: 'a b' }, ['a', 'b']],
    [{ scp: ['a', 'b c'] }, ['a', 'b c']],
    [{ scope: 'a', scp: ['b'] }, ['a']],
    [{ scope: ['a', 'b c', ''] }, ['a', 'b c']],
    [{ scope: ['a'], scp: 'b' }, ['a']],
    [{ scope: [], scp: 'b' }, []],
    [{ scope: ['a', 1] }, []],
    [{ scope: [['a']] }, []],
    [{ scope: 1 }, []],
    [{ scope: null, scp: null }, []],
    [{ scp: ['a', 1, null, ''] }, ['a']],
    [{ scp: { a: 1 } }, []],
  ];
  for (const [claims, scopes] of CASES)
    it(`of ${JSON.stringify(claims)} are ${JSON.stringify(scopes)}`, async () =>
      assert.deepEqual((await authenticate(claims)).scopes, scopes));
});

describe('the user', () => {
  /** Every object reachable from a value. */
  function* objects(value: unknown): Generator<object> {
    if (typeof value !== 'object' || value === null) return;
    yield value;
    for (const member of Object.values(value)) yield* objects(member);
  }
  const text =
    '{"sub":"ada","address":{"lines":[{"a":1},[2]],"geo":null},"aud":["a","b"],' +
    '"__proto__":{"admin":true},"constructor":{"prototype":{"admin":true}},"toString":"x","hasOwnProperty":1,"then":2}';

  it('is frozen at every depth, and so is what is known beside it', async () => {
    const auth = await authenticate(text);
    assert.ok([...objects(auth)].length > 8);
    for (const object of objects(auth)) assert.ok(Object.isFrozen(object), JSON.stringify(object));
    assert.throws(() => Object.assign(auth.user, { sub: 'eve' }), TypeError);
    assert.throws(() => Object.assign(untyped<{ address: object }>(auth.user).address, { geo: 1 }), TypeError);
    assert.throws(() => untyped<string[]>(auth.user.aud).push('c'), TypeError);
    assert.throws(() => untyped<string[]>(auth.scopes).push('admin'), TypeError);
  });
  it('has no prototype at any depth, so that a missing claim is undefined whatever its name', async () => {
    for (const object of objects(await verify({ address: { a: {} } })))
      assert.equal(Object.getPrototypeOf(object), null);
    for (const name of ['constructor', '__proto__', 'toString', 'hasOwnProperty', 'valueOf', 'then']) {
      assert.equal((await verify({}))[name], undefined, name);
      assert.ok(!(name in untyped<object>(await verify({}))), name);
    }
  });
  it('keeps claims with the names of inherited members as claims', async () => {
    const user = await verify(text);
    assert.deepEqual(Object.keys(user), Object.keys(JSON.parse(text)));
    assert.deepEqual([user['toString'], user['hasOwnProperty'], user['then']], ['x', 1, 2]);
    assert.deepEqual({ ...untyped<object>(user['__proto__']) }, { admin: true });
    assert.equal(user['admin'], undefined);
    assert.equal(untyped<{ admin?: unknown }>({}).admin, undefined, 'nothing reached Object.prototype');
    assert.equal(JSON.stringify(user), text);
  });
  it('is one object for all who bring the same token, and cannot be changed for the next', async () => {
    const verifier = verifierAt(NOW);
    const token = seal(publicJwk, { plaintext: text });
    const [first, second] = [await verifier.verifyToken(token), await verifier.verifyToken(token)];
    for (const user of [first, second]) assert.equal(JSON.stringify(user), text);
  });
  it('holds all of Unicode, every JSON type and long numbers as JSON gives them', async () => {
    const claims = {
      emoji: '👩‍💻',
      nul: '\0',
      lone: '\uD800',
      zero: -0,
      big: 9007199254740991,
      long: 1234567.890123,
      small: 5e-324,
      list: [true, false, null, '', []],
      object: {},
    };
    const token = await encryptToken(claims, publicJwk, { expiresIn: null });
    const { iat: _iat, ...user } = await new JWETokenVerifier({ keys }).verifyToken(token);
    assert.equal(JSON.stringify(user), JSON.stringify(claims));
  });
});
