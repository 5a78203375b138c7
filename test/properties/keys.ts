// Laws about keys: no private member gets out, and a cache changes no verdict while keys and clocks change.
import fc from 'fast-check';
import {
  type AuthEvent,
  authMiddleware,
  compactDecrypt,
  compactEncrypt,
  encryptToken,
  JWETokenVerifier,
  jwkThumbprint,
  publicJwks,
  withAuthFetch,
} from 'mcp-auth-middleware';
import assert from 'node:assert/strict';
import { createPrivateKey, sign } from 'node:crypto';
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { inspect, isDeepStrictEqual } from 'node:util';
import { type Law, law, type Verdict, verdictOf } from './laws.ts';
import { AUDIENCE, b64u, sealByHand, signingPair } from './tokens.ts';
import { collect } from '../support/memory.ts';
import { keyPair, type Scope, serve } from '../support/support.ts';

const PRIVATE = ['d', 'p', 'q', 'dp', 'dq', 'qi'] as const;
const PUBLISHED = ['alg', 'e', 'kid', 'kty', 'n', 'use'];
const MEMBERS = [
  ...PRIVATE,
  ...PUBLISHED,
  'key_ops',
  'oth',
  'k',
  'crv',
  'x',
  'y',
  'x5c',
  'iat',
  'nbf',
  'exp',
  '__proto__',
  'keys',
];

type Change =
  | { member: string; value: unknown }
  | { drop: string }
  | { private: string; into: string }
  | { clip: string; to: number };

/**
 * Whatever a file, a Secret or a hand can do to a key.
 * Private values never go where public ones are: no code could know them there.
 */
const changes: fc.Arbitrary<Change> = fc.oneof(
  fc.record({
    member: fc.constantFrom(...MEMBERS),
    value: fc.oneof(
      fc.jsonValue({ maxDepth: 1 }),
      fc.constantFrom<unknown>(
        'RSA',
        'EC',
        'oct',
        'sig',
        'enc',
        'RSA-OAEP',
        'RSA-OAEP-256',
        'RSA1_5',
        'PS256',
        'AQAB',
        'AQ',
        'AAAA',
        ['decrypt'],
        ['encrypt'],
        ['sign'],
        undefined,
      ),
    ),
  }),
  fc.record({ drop: fc.constantFrom(...MEMBERS) }),
  fc.record({
    private: fc.constantFrom(...PRIVATE),
    into: fc.constantFrom(...MEMBERS.filter((name) => name !== 'n' && name !== 'kid')),
  }),
  fc.record({ clip: fc.constantFrom(...PRIVATE, 'n', 'e'), to: fc.integer({ min: -3, max: 30 }) }),
);

function change(jwk: Record<string, unknown>, how: Change): Record<string, unknown> {
  if ('drop' in how) return Object.fromEntries(Object.entries(jwk).filter(([name]) => name !== how.drop));
  if ('private' in how) return { ...jwk, [how.into]: jwk[how.private] };
  if ('clip' in how) return { ...jwk, [how.clip]: String(jwk[how.clip] ?? '').slice(0, how.to) };
  return { ...jwk, [how.member]: how.value };
}

const WRAPS: Record<string, (jwk: unknown, other: unknown) => unknown> = {
  one: (jwk) => jwk,
  set: (jwk) => ({ keys: [jwk] }),
  two: (jwk, other) => ({ keys: [jwk, other] }),
  second: (jwk, other) => ({ keys: [other, jwk] }),
  twice: (jwk) => ({ keys: [jwk, jwk] }),
  array: (jwk) => [jwk],
  noArray: (jwk) => ({ keys: jwk }),
  nested: (jwk) => ({ keys: [{ keys: [jwk] }] }),
};

async function noPrivateMemberGetsOut(): Promise<Law> {
  const [first, second] = await Promise.all([keyPair(), keyPair('other')]);
  const [ed, es] = [signingPair('EdDSA'), signingPair('ES256')];
  const bases: Record<string, unknown>[] = [
    { ...first.privateJwk },
    { ...first.privateJwk },
    { ...second.privateJwk },
    { ...ed.privateJwk },
    { ...es.privateJwk },
  ];
  const secrets = bases
    .flatMap((jwk) => PRIVATE.flatMap((name) => jwk[name] ?? []))
    .map(String)
    .flatMap((text) => [text.slice(0, 20), text.slice(-20)]);
  const token = await encryptToken({ sub: 'alice' }, first.publicJwk);
  const arbitrary = fc.record({
    base: fc.nat(bases.length - 1),
    how: fc.array(changes, { maxLength: 3 }),
    wrap: fc.constantFrom(...Object.keys(WRAPS)),
  });
  return law('no change of a JWK lets a private member out', 60, arbitrary, async ({ base, how, wrap }) => {
    const jwk: unknown = WRAPS[wrap]?.(how.reduce(change, bases[base] ?? {}), second.privateJwk);
    /**
     * What comes out, printed in full, and the public set if it is one.
     * As JavaScript would call it, for the types forbid most of these.
     */
    const look = async (what: string, call: () => unknown): Promise<string | undefined> => {
      let out: unknown;
      try {
        out = await call();
      } catch (error) {
        assert.ok(error instanceof Error);
        assert.match(error.name, /^(KeyError|AuthError)$/, `${what} fails with ${error.name}: ${error.message}`);
        out = error;
      }
      const text =
        typeof out === 'string' ? out : inspect(out, { depth: Infinity, showHidden: true, maxStringLength: Infinity });
      assert.ok(!secrets.some((secret) => text.includes(secret)), `${what} shows a private member`);
      return out instanceof Error ? undefined : text;
    };
    /** A public set has public members, however it was reached. */
    const lookAtSet = async (what: string, call: () => unknown): Promise<boolean> => {
      const text = await look(what, async () => JSON.stringify(await call()));
      const { keys } = text === undefined ? { keys: [] } : (JSON.parse(text) as { keys: object[] });
      for (const key of keys)
        assert.deepEqual(
          Object.keys(key).filter((name) => !PUBLISHED.includes(name)),
          [],
          what,
        );
      return text !== undefined;
    };
    await lookAtSet('publicJwks', () => Reflect.apply(publicJwks, undefined, [jwk]));
    await look('jwkThumbprint', () => Reflect.apply(jwkThumbprint, undefined, [jwk]));
    await look('encryptToken', () => Reflect.apply(encryptToken, undefined, [{}, jwk]));
    await look('compactEncrypt', () => Reflect.apply(compactEncrypt, undefined, [Buffer.from('{}'), jwk]));
    await look('encryptToken with sign', () =>
      Reflect.apply(encryptToken, undefined, [{}, first.publicJwk, { sign: { key: jwk, issuer: 'i', audience: 'a' } }]),
    );
    await look('compactDecrypt', () => Reflect.apply(compactDecrypt, undefined, [token, jwk]));
    await look('trustedIssuers', () =>
      Reflect.construct(JWETokenVerifier, [
        { keys: first.privateJwk, audience: 'a', trustedIssuers: [{ issuer: 'i', jwks: jwk }] },
      ]),
    );
    if (!(await lookAtSet('getJwks', () => Reflect.construct(JWETokenVerifier, [{ keys: jwk }]).getJwks()))) return;
    await lookAtSet('the JWKS endpoint', async () => {
      const answer: typeof fetch = Reflect.apply(withAuthFetch, undefined, [() => new Response(), { keys: jwk }]);
      return (await answer(new Request('http://localhost/.well-known/jwks.json'))).json();
    });
  });
}

/** Times are seconds from the start or, for keys, from when they are written. */
interface TokenPlan {
  key: number;
  named: boolean;
  signer: number;
  exp: number | undefined;
  nbf: number | undefined;
  sound: boolean;
}
interface KeyPlan {
  key: number;
  nbf: number | undefined;
  exp: number | undefined;
}
type Step = { clock: number } | { ask: number } | { file: KeyPlan[] | 'half' | 'gone' } | { issuer: number[] };

const START = 2_000_000_000;
const SPANS = [0, 1, 4, 5, 6, 29, 30, 31, 60, 299, 300, 599, 600, 601, 3600];

const plans = (() => {
  const which = fc.nat(2);
  const later = fc.option(fc.constantFrom(...SPANS.filter((span) => span > 0), 86_401), { nil: undefined, freq: 2 });
  const token: fc.Arbitrary<TokenPlan> = fc.record({
    key: which,
    named: fc.boolean(),
    signer: which,
    exp: later,
    nbf: fc.option(fc.constantFrom(-60, 30, 60, 600), { nil: undefined, freq: 4 }),
    sound: fc.constantFrom(true, true, true, true, false),
  });
  const keys = fc.uniqueArray(
    fc.record({
      key: which,
      nbf: fc.option(fc.constantFrom(...SPANS), { nil: undefined }),
      exp: fc.option(fc.constantFrom(...SPANS), { nil: undefined, freq: 3 }),
    }),
    { selector: ({ key }) => key, minLength: 1, maxLength: 3 },
  );
  const ask = fc.record({ ask: fc.nat(5) });
  const step: fc.Arbitrary<Step> = fc.oneof(
    { weight: 10, arbitrary: ask },
    { weight: 4, arbitrary: fc.record({ clock: fc.constantFrom(...SPANS, 86_400, -1, -10, -700) }) },
    {
      weight: 2,
      arbitrary: fc.record({
        file: fc.oneof(
          { weight: 4, arbitrary: keys },
          { weight: 1, arbitrary: fc.constantFrom('half' as const, 'gone' as const) },
        ),
      }),
    },
    { weight: 2, arbitrary: fc.record({ issuer: fc.uniqueArray(which) }) },
  );
  return fc.record({
    signed: fc.boolean(),
    maxEntries: fc.constantFrom(1, 2, 1000),
    tokens: fc.array(token, { minLength: 1, maxLength: 6 }),
    steps: fc.array(step, { maxLength: 40, size: 'max' }),
  });
})();

async function aCacheChangesNothing(scope: Scope): Promise<Law> {
  const pairs = await Promise.all(['server', 'other', 'third'].map((name) => keyPair(name)));
  const signers = [0, 1, 2].map((n) => signingPair('EdDSA', `signer ${n}`));
  const folder = mkdtempSync(join(tmpdir(), 'properties-'));
  scope.after(() => rmSync(folder, { recursive: true, force: true }));
  /** What the issuer publishes, its version, and which version each verifier fetched when. */
  let issuer = { keys: [0, 1, 2], version: 0 };
  let now = START;
  const fetched = new Map<string, { version: number; at: number }>();
  const failing = new Set<string>();
  const { url } = await serve(scope, (req, res) => {
    const keys = issuer.keys.flatMap((n) => signers[n] ?? []).map(({ publicJwk }) => publicJwk);
    if (keys.length > 0) fetched.set(req.url ?? '', { version: issuer.version, at: now });
    failing[keys.length > 0 ? 'delete' : 'add'](req.url ?? '');
    res.end(JSON.stringify({ keys }));
  });

  const mint = ({ key, named, signer, exp, nbf, sound }: TokenPlan, signed: boolean): string => {
    const { publicJwk } = pairs[key] ?? assert.fail();
    const claims = JSON.stringify({
      sub: 'alice',
      aud: AUDIENCE,
      iss: 'issuer',
      nbf: nbf && START + nbf,
      exp: START + (exp ?? (signed ? 1e6 : NaN)) || undefined,
    });
    const { privateJwk } = signers[signer] ?? assert.fail();
    const input = `${b64u(JSON.stringify({ alg: 'EdDSA', kid: privateJwk.kid }))}.${b64u(claims)}`;
    const inner = (): string =>
      `${input}.${b64u(sign(null, Buffer.from(input), createPrivateKey({ key: { ...privateJwk }, format: 'jwk' })))}`;
    const header = {
      alg: 'RSA-OAEP-256',
      enc: 'A256GCM',
      kid: named ? publicJwk.kid : undefined,
      cty: signed ? 'JWT' : undefined,
    };
    const token = sealByHand({
      header: Buffer.from(JSON.stringify(header)),
      recipient: { jwk: publicJwk, oaepHash: 'sha256' },
      cek: 32,
      enc: 'aes-256-gcm',
      iv: 12,
      plaintext: Buffer.from(signed ? inner() : claims),
    });
    return sound ? token : token.slice(0, -22) + b64u(Buffer.alloc(16));
  };

  let runs = 0;
  return law(
    'a cache changes no verdict, whatever clock, key file and issuer do',
    20,
    plans,
    async ({ signed, maxEntries, tokens: planned, steps }) => {
      const path = join(folder, `${(runs += 1)}.json`);
      let size = 0;
      let file: { key: number; exp: number }[] | undefined = [
        { key: 0, exp: Infinity },
        { key: 1, exp: Infinity },
      ];
      const write = (state: KeyPlan[] | 'half' | 'gone'): void => {
        if (state === 'gone') return rmSync(path, { force: true });
        const plan = state === 'half' ? [{ key: 0, nbf: undefined, exp: undefined }] : state;
        const keys = plan.map(({ key, nbf, exp }) => ({
          ...pairs[key]?.privateJwk,
          iat: now - 10,
          nbf: nbf === undefined ? undefined : now + nbf,
          exp: exp === undefined ? undefined : now + exp,
        }));
        const text = JSON.stringify({ keys });
        // Every state has a length of its own: else two swaps within one tick of the file system's clock look alike.
        writeFileSync(`${path}~`, (state === 'half' ? text.slice(0, 200) : text) + ' '.repeat((size += 1)), {
          mode: 0o600,
        });
        renameSync(`${path}~`, path);
      };
      now = START;
      issuer = { keys: [0, 1, 2], version: issuer.version + 1 };
      fetched.clear();
      failing.clear();
      write([
        { key: 0, nbf: undefined, exp: undefined },
        { key: 1, nbf: 60, exp: undefined },
      ]);
      const make = (name: string, cache: false | { maxEntries: number }): JWETokenVerifier =>
        new JWETokenVerifier({
          keyFile: path,
          cache,
          now: () => now,
          audience: AUDIENCE,
          ...(signed && { trustedIssuers: [{ issuer: 'issuer', jwks: new URL(`${url}/${name}`) }] }),
        });
      const [cached, uncached] = [make('cached', { maxEntries }), make('uncached', false)];
      // Which state of the file each has read last, and what keys are in it; which of them could not read the issuer's
      // keys, as on a machine so busy that five seconds pass.
      const loaded = new Map<JWETokenVerifier, unknown>();
      const cutOff = new Set<JWETokenVerifier>();
      for (const verifier of [cached, uncached]) {
        const onEvent = ({ type, kids, nextExpiry }: AuthEvent): void => {
          if (type === 'keys.loaded') loaded.set(verifier, [size, kids, nextExpiry]);
          if (type === 'issuer.failed') cutOff.add(verifier);
          if (type === 'issuer.fetched') cutOff.delete(verifier);
        };
        authMiddleware({ verifier, onEvent });
      }
      const tokens = new Map<number, string>();
      const asked = [now];
      for (const step of steps) {
        if ('clock' in step) now += step.clock;
        else if ('file' in step) {
          write(step.file);
          file =
            typeof step.file === 'string'
              ? undefined
              : step.file.map(({ key, exp }) => ({ key, exp: exp === undefined ? Infinity : now + exp }));
        } else if ('issuer' in step) issuer = { keys: step.issuer, version: issuer.version + 1 };
        else {
          const index = step.ask % planned.length;
          const plan = planned[index] ?? assert.fail();
          const token = tokens.get(index) ?? mint(plan, signed);
          tokens.set(index, token);
          // 10 s from the last look there is one before the verdict, so that the file alone decides.
          const current = !signed && file && asked.every((time) => Math.abs(now - time) > 10) ? file : undefined;
          const judge = async (): Promise<string | undefined> => {
            const wasFailing = failing.size + cutOff.size > 0;
            const [one, other] = await Promise.all([
              verdictOf(cached.authenticate(token)),
              verdictOf(uncached.authenticate(token)),
            ]);
            const [mine, theirs] = [describe(one), describe(other)];
            // Each fetches the issuer's keys for itself, and does not wait for an issuer that is down while it has a
            // set.
            const otherKeys =
              signed && (wasFailing || !isDeepStrictEqual(fetched.get('/cached'), fetched.get('/uncached')));
            // Each looks at the file for itself, and what is no key file leaves it with what it has read last.
            const otherFile = file === undefined && !isDeepStrictEqual(loaded.get(cached), loaded.get(uncached));
            if (!isDeepStrictEqual(mine, theirs) && !otherKeys && !otherFile)
              return inspect({
                cached: mine,
                uncached: theirs,
                files: [loaded.get(cached), loaded.get(uncached)],
                fetched,
              });
            return current && mine.status !== expectedStatus(plan, current) ? 'not what the key file says' : undefined;
          };
          // The timer may just have looked for one of the two, or before the file was written: then it does so again.
          // Only one of the two may have read the new file yet: all laws of the process, with their RSA operations, may
          // be in front of that look.
          const agree = (): boolean => isDeepStrictEqual(loaded.get(cached), loaded.get(uncached));
          let problem = await judge();
          for (let looks = 0; problem !== undefined && looks < (agree() ? 3 : 20); looks += 1) {
            await delay(1100);
            problem = await judge();
          }
          assert.equal(problem, undefined);
          asked.push(now);
        }
      }
      // The timer looks at the files of all verifiers that are not collected yet.
      write([{ key: 0, nbf: undefined, exp: undefined }]);
      if (runs % 20 === 0) collect();
    },
  );

  function expectedStatus({ key, exp, nbf, sound }: TokenPlan, keys: { key: number; exp: number }[]): number {
    const usable = keys.filter((one) => now < one.exp);
    if (usable.length === 0) return 503;
    const inTime = now < START + (exp ?? Infinity) + 30 && now >= START + (nbf ?? -Infinity) - 30;
    return sound && inTime && usable.some((one) => one.key === key) ? 200 : 401;
  }
}

/** All that a caller sees, the token aside. */
function describe(verdict: Verdict<object>): { status: number } {
  if ('refused' in verdict) {
    const { status, code, message } = verdict.refused;
    return { status, ...{ code, message } };
  }
  return { status: 200, ...verdict.accepted };
}

export async function keyLaws(scope: Scope): Promise<Law[]> {
  return Promise.all([noPrivateMemberGetsOut(), aCacheChangesNothing(scope)]);
}
