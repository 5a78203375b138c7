// Laws that hold for every input, and how they are checked: a few cases each in `npm test`, more in `npm run fuzz`.
import fc from 'fast-check';
import { AuthError } from 'mcp-auth-middleware';
import assert from 'node:assert/strict';
import { inspect } from 'node:util';

export interface Trial {
  seed: number;
  cases: number;
  /** Where in the seed's cases a failure was, as its report says: replays that one alone. */
  path?: string | undefined;
}
export interface Law {
  readonly name: string;
  /** Its share in every 1,000 cases; those that cost an RSA operation each get a small one. */
  readonly share: number;
  /** The report of the smallest case found to break it; undefined when there is none. */
  check(trial: Trial): Promise<string | undefined>;
}

/** One law: `holds` rejects for a case that breaks it. */
export function law<T>(name: string, share: number, cases: fc.Arbitrary<T>, holds: (value: T) => Promise<void>): Law {
  return {
    name,
    share,
    async check({ seed, cases: numRuns, path }) {
      const details = await fc.check(fc.asyncProperty(cases, holds), {
        seed,
        numRuns,
        includeErrorInReport: true,
        ...(path !== undefined && { path }),
      });
      return details.failed ? fc.defaultReportMessage(details) : undefined;
    },
  };
}

/** What every bad token gets, whatever is wrong with it. */
export const THE_ONE_ERROR = { code: 'invalid_token', status: 401, message: 'The access token is invalid' };

export type Verdict<T> = { accepted: T } | { refused: AuthError };

/** Accepted or refused. Anything but an AuthError is neither, and goes on as what it is. */
export async function verdictOf<T>(answer: Promise<T>): Promise<Verdict<T>> {
  try {
    return { accepted: await answer };
  } catch (error) {
    if (error instanceof AuthError) return { refused: error };
    throw error;
  }
}

/** The one error, saying nothing of the token and nothing of why but the reason's constant. */
export function assertOneError(verdict: Verdict<unknown>, token: unknown): void {
  assert.ok('refused' in verdict, 'was accepted');
  const { refused } = verdict;
  assert.deepEqual({ code: refused.code, status: refused.status, message: refused.message }, THE_ONE_ERROR);
  assert.equal(refused.cause, undefined);
  assert.deepEqual(refused.missing, []);
  // Short texts occur in any stack trace.
  if (typeof token === 'string' && token.length >= 16)
    assert.ok(!inspect(refused).includes(token.slice(0, 64)), 'shows the token');
}
