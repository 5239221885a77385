// SPDX-License-Identifier: Apache-2.0
// One case per dialect and model class: a configuration, what a layer of it is made of, what a load
// must say, and the ways in which its conventions are most easily taken wrong.
#ifndef MOE_TESTS_DIALECTS_CASES_H
#define MOE_TESTS_DIALECTS_CASES_H

#include "dialects/gen.h"

typedef struct dialect_case {
    const char *name;
    const char *dialect, *shared_dialect;
    const char *config;       ///< without its closing brace
    const char *quantization; ///< quantization_config; NULL: none
    gen_shape shape;
    bool in_place; ///< can be used where it lies
    gen_wrong wrong[3];
} dialect_case;

#define PER_EXPERT                                                                                 \
    {                                                                                              \
        "gate_proj", "up_proj", "down_proj"                                                        \
    }
#define NUMBERED                                                                                   \
    {                                                                                              \
        "w1", "w3", "w2"                                                                           \
    }
#define MLP "model.layers.0.mlp."

#define QWEN(h, i)                                                                                 \
    "{\"model_type\":\"qwen3_moe\",\"hidden_size\":" #h ",\"moe_intermediate_size\":" #i           \
    ",\"num_experts\":4,\"num_experts_per_tok\":2,\"hidden_act\":\"silu\",\"norm_topk_prob\":true"
#define GPT_OSS(h, i)                                                                              \
    "{\"model_type\":\"gpt_oss\",\"hidden_size\":" #h ",\"intermediate_size\":" #i                 \
    ",\"num_local_experts\":4,\"num_experts_per_tok\":2,\"hidden_act\":\"silu\""
#define DEEPSEEK(h, i, type)                                                                       \
    "{\"model_type\":\"" type "\",\"hidden_size\":" #h ",\"moe_intermediate_size\":" #i            \
    ",\"n_routed_experts\":4,\"num_experts_per_tok\":2,\"hidden_act\":\"silu\",\"n_group\":1,"     \
    "\"topk_group\":1,\"norm_topk_prob\":true,\"routed_scaling_factor\":2.5,\"n_shared_experts\":" \
    "1"
#define CT(format, bits, more)                                                                     \
    "{\"quant_method\":\"compressed-tensors\",\"format\":\"" format                                \
    "\",\"ignore\":[\"lm_head\",\"re:.*mlp.gate$\",\"re:.*self_attn\\\\.(q|k|v)_proj\"],"          \
    "\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"],\"weights\":{\"num_"                 \
    "bits\":" #bits more "}}}}"
#define QWEN_SHAPE                                                                                 \
    .experts = 4, .gated = true, .prefix = MLP, .names = PER_EXPERT, .router = "gate.weight"
#define GPT_OSS_SHAPE                                                                              \
    .experts = 4, .gated = true, .prefix = MLP, .router = "router.weight", .router_bias = true,    \
    .bias = true

// clang-format off
static const dialect_case dialect_cases[] = {
{"mixtral", "Hugging Face float", NULL,
 "{\"model_type\":\"mixtral\",\"hidden_size\":64,\"intermediate_size\":64,"
 "\"num_local_experts\":4,\"num_experts_per_tok\":2,\"hidden_act\":\"silu\"", NULL,
 {.experts = 4, .hidden = 64, .inter = 64, .gated = true, .format = MOE_FORMAT_BF16,
  .style = GEN_FLOAT, .prefix = "model.layers.0.block_sparse_moe.", .names = NUMBERED,
  .router = "gate.weight"}, false, {GEN_GATE_UP}},

{"qwen3_moe", "Hugging Face float", NULL, QWEN(40, 24), NULL,
 {QWEN_SHAPE, .hidden = 40, .inter = 24, .format = MOE_FORMAT_BF16, .style = GEN_FLOAT},
 false, {GEN_GATE_UP}},

{"qwen3_5_moe", "Hugging Face float", "Hugging Face float",
 "{\"model_type\":\"qwen3_5_moe\",\"text_config\":{\"model_type\":\"qwen3_5_moe_text\","
 "\"hidden_size\":64,\"moe_intermediate_size\":32,\"num_experts\":4,\"num_experts_per_tok\":2,"
 "\"hidden_act\":\"silu\",\"shared_expert_intermediate_size\":48}", NULL,
 {.experts = 4, .hidden = 64, .inter = 32, .shared_inter = 48, .gated = true,
  .format = MOE_FORMAT_BF16, .shared_format = MOE_FORMAT_BF16, .style = GEN_STACK,
  .shared_style = GEN_FLOAT, .prefix = "model.language_model.layers.0.mlp.",
  .shared_name = "shared_expert", .router = "gate.weight", .shared_gate = true},
 false, {GEN_ORDER, GEN_TRANSPOSED}},

{"granitemoe", "Hugging Face float", NULL,
 "{\"model_type\":\"granitemoe\",\"hidden_size\":64,\"intermediate_size\":32,"
 "\"num_local_experts\":4,\"num_experts_per_tok\":2,\"hidden_act\":\"silu\"", NULL,
 {.experts = 4, .hidden = 64, .inter = 32, .gated = true, .format = MOE_FORMAT_BF16,
  .style = GEN_STACK_GRANITE, .prefix = "model.layers.0.block_sparse_moe.",
  .router = "router.layer.weight"}, true, {GEN_ORDER, GEN_TRANSPOSED}},

{"llama4", "Hugging Face float", "Hugging Face float",
 "{\"model_type\":\"llama4_text\",\"hidden_size\":64,\"intermediate_size\":32,"
 "\"num_local_experts\":4,\"num_experts_per_tok\":1,\"hidden_act\":\"silu\"", NULL,
 {.experts = 4, .hidden = 64, .inter = 32, .shared_inter = 32, .gated = true,
  .format = MOE_FORMAT_BF16, .shared_format = MOE_FORMAT_BF16, .style = GEN_STACK_IN_OUT,
  .shared_style = GEN_FLOAT, .prefix = "model.layers.0.feed_forward.",
  .shared_name = "shared_expert", .router = "router.weight"},
 false, {GEN_ORDER, GEN_TRANSPOSED}},

{"gpt-oss bf16", "Hugging Face float", NULL, GPT_OSS(64, 32), NULL,
 {GPT_OSS_SHAPE, .hidden = 64, .inter = 32, .format = MOE_FORMAT_BF16,
  .style = GEN_STACK_PAIRS}, true, {GEN_ORDER, GEN_TRANSPOSED}},

{"gpt-oss mxfp4", "gpt-oss MXFP4", NULL, GPT_OSS(96, 64),
 "{\"quant_method\":\"mxfp4\",\"modules_to_not_convert\":[\"model.layers.*.self_attn\","
 "\"model.layers.*.mlp.router\",\"lm_head\"]}",
 {GPT_OSS_SHAPE, .hidden = 96, .inter = 64, .format = MOE_FORMAT_MXFP4,
  .scale_dtype = MOE_E8M0, .style = GEN_GPT_OSS}, true, {GEN_NIBBLES, GEN_ORDER}},

{"deepseek fp8", "DeepSeek FP8 block", "DeepSeek FP8 block", DEEPSEEK(160, 144, "deepseek_v3"),
 "{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128],\"activation_scheme\":\"dynamic\"}",
 {.experts = 4, .hidden = 160, .inter = 144, .shared_inter = 144, .gated = true,
  .format = MOE_FORMAT_E4M3FN_BLOCK, .scale_dtype = MOE_F32,
  .shared_format = MOE_FORMAT_E4M3FN_BLOCK, .shared_scale_dtype = MOE_F32,
  .style = GEN_DEEPSEEK, .shared_style = GEN_DEEPSEEK, .prefix = MLP, .names = PER_EXPERT,
  .shared_name = "shared_experts", .router = "gate.weight",
  .correction = "gate.e_score_correction_bias"}, false, {GEN_RECIPROCAL, GEN_GATE_UP}},

{"fp8 stacks", "DeepSeek FP8 block", NULL, QWEN(160, 128), "{\"quant_method\":\"fp8\"}",
 {.experts = 4, .hidden = 160, .inter = 128, .gated = true, .format = MOE_FORMAT_E4M3FN_BLOCK,
  .scale_dtype = MOE_F32, .style = GEN_STACK_FP8, .prefix = MLP, .router = "gate.weight"},
 true, {GEN_RIGHT}},

{"deepseek v4", "DeepSeek-V4 MXFP4", "DeepSeek-V4 FP8 block",
 DEEPSEEK(96, 64, "deepseek_v4") ",\"scoring_func\":\"sqrtsoftplus\",\"num_hash_layers\":0,"
 "\"swiglu_limit\":10", "{\"quant_method\":\"fp8\",\"scale_fmt\":\"ue8m0\"}",
 {.experts = 4, .hidden = 96, .inter = 64, .shared_inter = 64, .gated = true,
  .format = MOE_FORMAT_MXFP4, .scale_dtype = MOE_E8M0,
  .shared_format = MOE_FORMAT_E4M3FN_BLOCK, .shared_scale_dtype = MOE_E8M0,
  .style = GEN_V4, .shared_style = GEN_V4_FP8, .prefix = "layers.0.ffn.", .names = NUMBERED,
  .shared_name = "shared_experts", .router = "gate.weight", .correction = "gate.bias"},
 false, {GEN_NIBBLES, GEN_GATE_UP}},

{"ct nvfp4", "compressed-tensors NVFP4", NULL, QWEN(96, 64),
 CT("nvfp4-pack-quantized", 4, ",\"group_size\":16"),
 {QWEN_SHAPE, .hidden = 96, .inter = 64, .format = MOE_FORMAT_NVFP4, .scale_dtype = MOE_E4M3FN,
  .style = GEN_CT_NVFP4, .inputs = true}, false, {GEN_RECIPROCAL, GEN_NIBBLES, GEN_GATE_UP}},

{"modelopt nvfp4", "ModelOpt NVFP4", NULL, QWEN(96, 64),
 "{\"quant_method\":\"modelopt\",\"quant_algo\":\"NVFP4\",\"ignore\":[\"lm_head\",\"*.gate\"]}",
 {QWEN_SHAPE, .hidden = 96, .inter = 64, .format = MOE_FORMAT_NVFP4, .scale_dtype = MOE_E4M3FN,
  .style = GEN_MODELOPT, .inputs = true}, false, {GEN_RECIPROCAL, GEN_NIBBLES, GEN_GATE_UP}},

{"ct mxfp4", "compressed-tensors MXFP4", NULL, QWEN(96, 64),
 CT("mxfp4-pack-quantized", 4, ",\"group_size\":32"),
 {QWEN_SHAPE, .hidden = 96, .inter = 64, .format = MOE_FORMAT_MXFP4, .scale_dtype = MOE_E8M0,
  .style = GEN_CT_MXFP4}, false, {GEN_NIBBLES}},

{"quark mxfp4", "Quark MXFP4", NULL, QWEN(96, 64),
 "{\"quant_method\":\"quark\",\"global_quant_config\":{\"weight\":{\"dtype\":\"fp4\"}},"
 "\"exclude\":[\"lm_head\",\"re:model.layers.*self_attn.*\"]}",
 {QWEN_SHAPE, .hidden = 96, .inter = 64, .format = MOE_FORMAT_MXFP4, .scale_dtype = MOE_E8M0,
  .style = GEN_QUARK_MXFP4}, false, {GEN_NIBBLES}},

{"modelopt mxfp8", "ModelOpt MXFP8", NULL, QWEN(96, 64),
 "{\"quant_method\":\"modelopt\",\"quant_algo\":\"MXFP8\"}",
 {QWEN_SHAPE, .hidden = 96, .inter = 64, .format = MOE_FORMAT_MXFP8_E4M3,
  .scale_dtype = MOE_E8M0, .style = GEN_MXFP8}, false, {GEN_GATE_UP}},

{"fp8 tensor", "compressed-tensors or Quark FP8", NULL, QWEN(96, 64),
 "{\"quant_method\":\"quark\",\"global_quant_config\":{\"weight\":{\"dtype\":\"fp8_e4m3\"}}}",
 {QWEN_SHAPE, .hidden = 96, .inter = 64, .format = MOE_FORMAT_E4M3FN_TENSOR,
  .scale_dtype = MOE_F32, .style = GEN_FP8, .inputs = true}, false, {GEN_RECIPROCAL, GEN_GATE_UP}},

{"fp8 channel", "compressed-tensors or Quark FP8", NULL, QWEN(96, 64),
 CT("float-quantized", 8, ""),
 {QWEN_SHAPE, .hidden = 96, .inter = 64, .format = MOE_FORMAT_E4M3FN_CHANNEL,
  .scale_dtype = MOE_BF16, .style = GEN_FP8}, false, {GEN_GATE_UP}},

{"fp8 block", "compressed-tensors or Quark FP8", NULL, QWEN(160, 144), NULL,
 {QWEN_SHAPE, .hidden = 160, .inter = 144, .format = MOE_FORMAT_E4M3FN_BLOCK,
  .scale_dtype = MOE_F32, .style = GEN_FP8}, false, {GEN_RECIPROCAL}},

{"ct int8", "compressed-tensors int8", NULL, QWEN(96, 64), CT("int-quantized", 8, ""),
 {QWEN_SHAPE, .hidden = 96, .inter = 64, .format = MOE_FORMAT_INT8_CHANNEL,
  .scale_dtype = MOE_F32, .style = GEN_CT_INT8}, false, {GEN_GATE_UP}},

{"ct int4", "compressed-tensors int4", NULL, QWEN(96, 64),
 CT("pack-quantized", 4, ",\"group_size\":32"),
 {QWEN_SHAPE, .hidden = 96, .inter = 64, .group = 32, .format = MOE_FORMAT_INT4_GROUP,
  .scale_dtype = MOE_BF16, .style = GEN_CT_INT4}, false, {GEN_NIBBLES, GEN_OFFSET, GEN_GATE_UP}},

{"ct int4 zero points", "compressed-tensors int4", NULL, QWEN(96, 64),
 CT("pack-quantized", 4, ",\"group_size\":16"),
 {QWEN_SHAPE, .hidden = 96, .inter = 64, .group = 16, .zeros = true,
  .format = MOE_FORMAT_INT4_GROUP, .scale_dtype = MOE_BF16, .style = GEN_CT_INT4},
 false, {GEN_NIBBLES}},

{"ct packed int8", "compressed-tensors packed int8", NULL, QWEN(96, 64),
 CT("pack-quantized", 8, ",\"group_size\":32"),
 {QWEN_SHAPE, .hidden = 96, .inter = 64, .group = 32, .format = MOE_FORMAT_INT8_GROUP,
  .scale_dtype = MOE_F32, .style = GEN_CT_PACKED8}, false, {GEN_NIBBLES, GEN_OFFSET}},

{"nemotron", "Hugging Face float", "Hugging Face float",
 "{\"model_type\":\"nemotron_h\",\"hidden_size\":64,\"moe_intermediate_size\":40,"
 "\"n_routed_experts\":4,\"num_experts_per_tok\":2,\"mlp_hidden_act\":\"relu2\",\"n_group\":1,"
 "\"topk_group\":1,\"norm_topk_prob\":true,\"routed_scaling_factor\":2.5,\"n_shared_experts\":1,"
 "\"moe_shared_expert_intermediate_size\":56,\"moe_latent_size\":32", NULL,
 {.experts = 4, .hidden = 64, .inter = 40, .latent = 32, .shared_inter = 56,
  .format = MOE_FORMAT_BF16, .shared_format = MOE_FORMAT_BF16, .style = GEN_FLOAT,
  .shared_style = GEN_FLOAT, .prefix = "backbone.layers.0.mixer.", .names = PER_EXPERT,
  .shared_name = "shared_experts", .router = "gate.weight",
  .correction = "gate.e_score_correction_bias"}, false, {GEN_RIGHT}},
};
// clang-format on
#define NUM_DIALECT_CASES (sizeof dialect_cases / sizeof dialect_cases[0])

#endif
