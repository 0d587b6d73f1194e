// The vendors' own SDKs for Node. A JSON line in: {vendor, do: "sign" | "verify", secret, body, headers, at};
// one out: {value}, or {error} where the SDK throws. `body` is base64, `at` POSIX seconds, names are lower-case.
import { createInterface } from "node:readline";

import { LinearWebhookClient } from "@linear/sdk/webhooks";
import * as octokit from "@octokit/webhooks-methods";
import "@shopify/shopify-api/adapters/web-api";
import { LogSeverity, shopifyApi } from "@shopify/shopify-api";
import { AwsLambdaReceiver } from "@zoom/rivet/chatbot";
import { Bot, webhookCallback } from "grammy";
import Stripe from "stripe";

console.debug = () => {}; // Rivet shows each event there, and this is what is read

const post = (headers, body) => new Request("https://example.com/", { method: "POST", headers, body });

const vendors = {
  octokit: {
    sign: ({ secret, body }) => octokit.sign(secret, body.toString()),
    verify: ({ secret, body, headers }) => octokit.verify(secret, body.toString(), headers["x-hub-signature-256"]),
  },
  stripe: {
    sign: ({ secret, body, at }) =>
      Stripe.webhooks.generateTestHeaderString({ payload: body.toString(), secret, timestamp: at }),
    verify: ({ secret, body, headers }) =>
      !!Stripe.webhooks.constructEvent(body, headers["stripe-signature"], secret),
  },
  shopify: {
    verify: async ({ secret, body, headers }) => {
      const api = shopifyApi({
        apiKey: "key", apiSecretKey: secret, hostName: "example.com", apiVersion: "2026-01", isEmbeddedApp: false,
        logger: { level: LogSeverity.Error },
      });
      return (await api.webhooks.validate({ rawBody: body.toString(), rawRequest: post(headers) })).valid;
    },
  },
  linear: {
    verify: ({ secret, body, headers }) => new LinearWebhookClient(secret).verify(body, headers["linear-signature"]),
  },
  zoom: {
    verify: async ({ secret, body, headers }) => {
      const answer = new AwsLambdaReceiver({ webhooksSecretToken: secret }).start();
      return (await answer({ body: body.toString(), headers, isBase64Encoded: false }, {})).statusCode === 200;
    },
  },
  telegram: {
    verify: async ({ secret, body, headers }) => {
      const botInfo = { id: 1, is_bot: true, first_name: "bot", username: "bot" };
      const answer = webhookCallback(new Bot("1:token", { botInfo }), "std/http", { secretToken: secret });
      return (await answer(post(headers, body))).status === 200;
    },
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  let answer;
  try {
    answer = { value: await vendors[asked.vendor][asked.do]({ ...asked, body: Buffer.from(asked.body, "base64") }) };
  } catch (error) {
    answer = { error: String(error) };
  }
  console.log(JSON.stringify(answer));
}
