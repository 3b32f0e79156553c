/* test_session.c: a session is written and read back, and every cut and single changed byte is
 * either refused or read as another valid one, under the sanitizers. tests/test_chat.py has the
 * lies by name. */
#define _POSIX_C_SOURCE 200809L
#include "tiny_model.h"

#include <sys/stat.h>
#include <unistd.h>

static void write_file(const char *path, const char *data, size_t n) {
  FILE *f = fopen(path, "wb");
  CHECK(f && fwrite(data, 1, n, f) == n);
  fclose(f);
}

static size_t read_file(const char *path, char *data, size_t capacity) {
  FILE *f = fopen(path, "rb");
  size_t n = fread(data, 1, capacity, f);
  fclose(f);
  return n;
}

int main(void) {
  enum { N_IDS = 5, CAPACITY = 1000 };
  const llm_message talk[] = {
      {LLM_ROLE_SYSTEM, "a\nb", 3}, {LLM_ROLE_USER, "", 0}, {LLM_ROLE_ASSISTANT, "x\0\xff", 3}};
  const int32_t ids[N_IDS] = {0, 7, 94, 7, 1};
  tiny_model t = tiny_open(&(tiny_shape){LLM_TYPE_F32, 1, 32, 2, 1, 48, 16, 0, NULL});
  char folder[] = "/tmp/test_session.XXXXXX", path[64], raw[CAPACITY];
  llm_session *s;
  llm_error err;
  size_t n;
  CHECK(mkdtemp(folder) != NULL);
  snprintf(path, sizeof path, "%s/talk", folder);
  CHECK(!llm_session_save(path, t.model, LLM_TEMPLATE_GEMMA, talk, 3, ids, N_IDS, NULL));
  CHECK(!llm_session_load(&s, path, t.model, NULL));
  CHECK(llm_session_template(s) == LLM_TEMPLATE_GEMMA);
  const llm_message *messages = llm_session_messages(s, &n);
  CHECK(n == 3);
  for (size_t i = 0; i < 3; i++) {
    CHECK(messages[i].role == talk[i].role && messages[i].n_bytes == talk[i].n_bytes);
    CHECK(!memcmp(messages[i].text, talk[i].text, talk[i].n_bytes));
  }
  CHECK(!memcmp(llm_session_ids(s, &n), ids, sizeof ids) && n == N_IDS);
  llm_session_free(s);

  size_t n_raw = read_file(path, raw, CAPACITY);
  CHECK(n_raw > 100 && n_raw < CAPACITY);
  for (size_t i = 0; i < n_raw; i++) {
    write_file(path, raw, i);
    CHECK(llm_session_load(&s, path, t.model, &err) == LLM_ERR_FORMAT && !s);
    raw[i] ^= 1 << i % 8;
    write_file(path, raw, n_raw);
    if (!llm_session_load(&s, path, t.model, &err)) llm_session_free(s);
    raw[i] ^= 1 << i % 8;
  }
  CHECK(!unlink(path));
  CHECK(llm_session_load(&s, path, t.model, &err) == LLM_ERR_IO);
  const llm_message bad = {(llm_role)7, "", 0};
  CHECK(llm_session_save(path, t.model, LLM_TEMPLATE_GEMMA, &bad, 1, ids, 0, &err) == LLM_ERR_ARG);
  CHECK(llm_session_save("/nowhere/talk", t.model, LLM_TEMPLATE_AUTO, talk, 1, ids, 0, &err) ==
        LLM_ERR_IO);
  CHECK(!mkfifo(path, 0600)); /* stands for a device: it must not become a file */
  CHECK(llm_session_save(path, t.model, LLM_TEMPLATE_GEMMA, talk, 3, ids, N_IDS, &err) ==
        LLM_ERR_IO);
  struct stat left;
  CHECK(!stat(path, &left) && S_ISFIFO(left.st_mode) && !unlink(path));
  write_file(path, "GGUF", 4); /* stands for a parameter file */
  CHECK(llm_session_save(path, t.model, LLM_TEMPLATE_GEMMA, talk, 3, ids, N_IDS, &err) ==
        LLM_ERR_IO);
  CHECK(strstr(err.message, "is no session"));
  CHECK(read_file(path, raw, CAPACITY) == 4 && !memcmp(raw, "GGUF", 4));
  for (int i = 0; i < 2; i++) { /* what is empty or a session gives way */
    if (i == 0) write_file(path, "", 0);
    CHECK(!llm_session_save(path, t.model, LLM_TEMPLATE_GEMMA, talk, 3, ids, N_IDS, &err));
  }
  CHECK(read_file(path, raw, CAPACITY) == n_raw && !unlink(path));
  CHECK(!rmdir(folder)); /* nothing was left behind */
  tiny_close(&t);
  return check_report("test_session");
}
