// llama_logits MODEL IDS LOGITS WINDOW THREADS: IDS holds int32 token ids, windows of WINDOW; LOGITS gets their
// logits, float32 [windows, WINDOW, vocabulary].  Each window starts with an empty cache.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include "llama.h"

int main(int argc, char **argv) {
  if (argc != 6) return std::fprintf(stderr, "usage: llama_logits MODEL IDS LOGITS WINDOW THREADS\n"), 2;
  const int window = std::atoi(argv[4]), threads = std::atoi(argv[5]);
  llama_log_set([](ggml_log_level level, const char *text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
  }, nullptr);
  llama_backend_init();
  llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (!model) return std::fprintf(stderr, "%s does not load\n", argv[1]), 1;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = params.n_batch = params.n_ubatch = window;
  params.n_threads = params.n_threads_batch = threads;
  params.type_k = params.type_v = GGML_TYPE_F32;
  llama_context *context = llama_init_from_model(model, params);
  if (!context) return std::fprintf(stderr, "no context\n"), 1;

  std::ifstream in(argv[2], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
  const auto *ids = reinterpret_cast<const int32_t *>(bytes.data());
  const size_t windows = bytes.size() / sizeof(int32_t) / window;
  const size_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
  std::ofstream out(argv[3], std::ios::binary);
  llama_batch batch = llama_batch_init(window, 0, 1);
  for (size_t w = 0; w < windows; ++w) {
    llama_memory_clear(llama_get_memory(context), true);
    batch.n_tokens = window;
    for (int i = 0; i < window; ++i) {
      batch.token[i] = ids[w * window + i];
      batch.pos[i] = i;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = true;
    }
    if (llama_decode(context, batch)) return std::fprintf(stderr, "decode fails\n"), 1;
    out.write(reinterpret_cast<const char *>(llama_get_logits(context)), window * vocabulary * sizeof(float));
  }
  llama_batch_free(batch);
  llama_free(context);
  llama_model_free(model);
  return out.flush() ? 0 : 1;
}
