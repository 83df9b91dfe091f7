/* What a delegate needs of TFLite's C structures, written by hand for 64-bit machines.

   Structures that are passed by pointer are given up to their last field that is used here. Those
   that are passed by value, stand in arrays or are made here have the full length that runtimes
   since 2.17 expect: a TfLiteRegistration that is too short lies wrongly on the stack of the call,
   and the runtime reads its other arguments out of place. OLD_ABI gives the length of TFLite 2.5. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { kOk = 0, kError = 1, kDelegateError = 2 } TfLiteStatus;

enum { kFloat32 = 1 };                                   /* tensor types */
enum { kAdd = 0, kConv2d = 3, kFullyConnected = 9, kMul = 18, kSoftmax = 25, kCustom = 32, kDelegate = 51 };
enum { kNone = 0, kRelu = 1, kReluN1To1 = 2, kRelu6 = 3 }; /* fused activations */
enum { kPaddingSame = 1 };
enum { kAllowDynamicTensors = 1 };                       /* a flag of a delegate */

typedef struct { int size; int data[]; } TfLiteIntArray;

struct TfLiteContext;
struct TfLiteDelegate;

typedef struct {
  int32_t type;
  void* data;
  TfLiteIntArray* dims;
  struct { float scale; int32_t zero_point; } params;
  int32_t allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  struct TfLiteDelegate* delegate;
  int buffer_handle;
  bool data_is_stale, is_variable;
  struct { int32_t type; void* params; } quantization;
  void* sparsity;
  const TfLiteIntArray* dims_signature;
} TfLiteTensor;

typedef struct {
  TfLiteIntArray *inputs, *outputs, *intermediates, *temporaries;
  void* user_data;
  void* builtin_data;
} TfLiteNode;

typedef struct {
  struct TfLiteDelegate* delegate;
  TfLiteIntArray *nodes_to_replace, *input_tensors, *output_tensors;
} TfLiteDelegateParams;

typedef struct {
  void* (*init)(struct TfLiteContext*, const char*, size_t);
  void (*free)(struct TfLiteContext*, void*);
  TfLiteStatus (*prepare)(struct TfLiteContext*, TfLiteNode*);
  TfLiteStatus (*invoke)(struct TfLiteContext*, TfLiteNode*);
  const char* (*profiling_string)(const struct TfLiteContext*, const TfLiteNode*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
#ifndef OLD_ABI
  void* registration_external;
  void* async_kernel;
  uint64_t inplace_operator;
  void* reserved[4];
#endif
} TfLiteRegistration;

typedef struct TfLiteContext {
  size_t tensors_size;
  TfLiteStatus (*GetExecutionPlan)(struct TfLiteContext*, TfLiteIntArray**);
  TfLiteTensor* tensors;
  void* impl;
  TfLiteStatus (*ResizeTensor)(struct TfLiteContext*, TfLiteTensor*, TfLiteIntArray*);
  void (*ReportError)(struct TfLiteContext*, const char*, ...);
  TfLiteStatus (*AddTensors)(struct TfLiteContext*, int, int*);
  TfLiteStatus (*GetNodeAndRegistration)(struct TfLiteContext*, int, TfLiteNode**, TfLiteRegistration**);
  TfLiteStatus (*ReplaceNodeSubsetsWithDelegateKernels)(struct TfLiteContext*, TfLiteRegistration,
                                                        const TfLiteIntArray*, struct TfLiteDelegate*);
} TfLiteContext;

typedef struct TfLiteDelegate {
  void* data;
  TfLiteStatus (*Prepare)(TfLiteContext*, struct TfLiteDelegate*);
  void *CopyFromBufferHandle, *CopyToBufferHandle, *FreeBufferHandle;
  int64_t flags;
  void* opaque_builder;
  void* reserved[8];
} TfLiteDelegate;

/* Parameters of operators: the first fields. */
typedef struct { int activation; } SimpleParams; /* ADD, MUL, FULLY_CONNECTED */
typedef struct { int padding, stride_w, stride_h, activation, dilation_w, dilation_h; } ConvParams;
typedef struct { float beta; } SoftmaxParams;
