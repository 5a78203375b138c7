// A few cases of every law, the same ones each time; `npm run fuzz` looks for new ones.
import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import { allLaws } from './properties-all.ts';
import { policyExamples } from './properties-tokens.ts';

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
