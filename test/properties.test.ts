// A few cases of every law, the same ones each time; `npm run fuzz` looks for new ones.
import { compactDecrypt, compactEncrypt } from 'mcp-auth-middleware';
import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import { allLaws } from './properties/all.ts';
import { assertOneError, verdictOf } from './properties/laws.ts';
import { applyEdit, policyExamples } from './properties/tokens.ts';
import { keyPair } from './support/support.ts';

describe('properties', async () => {
  for (const { name, share, check } of await allLaws({ after })) {
    it(name, { timeout: 120_000 }, async () => {
      const failure = await check({ seed: 1, cases: share });
      if (failure !== undefined) assert.fail(failure);
    });
  }
});

it('every policy that refuses what jose accepts has such a token', async () => {
  for (const { policy, difference } of await policyExamples()) assert.deepEqual(difference, [policy]);
});

it('compactDecrypt refuses every other spelling of each segment with the one error', async () => {
  const { privateJwk, publicJwk } = await keyPair();
  // 7 octets, like 256, 12 and 16, leave stray bits in the last letter.
  const token = compactEncrypt(Buffer.from('{"n":1}'), publicJwk);
  for (const segment of [0, 1, 2, 3, 4]) {
    for (const kind of ['pad', 'strayBits', 'drop', 'twice', 'letter'] as const) {
      const other =
        kind === 'letter'
          ? token
              .split('.')
              .map((text, n) => (n === segment ? `${text}*` : text))
              .join('.')
          : applyEdit(token, { kind, segment });
      if (other !== token) assertOneError(await verdictOf(compactDecrypt(other, privateJwk)), other);
    }
  }
});
